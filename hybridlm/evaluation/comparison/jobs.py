"""The runs of a study, and which come next: first the search for each model's learning rate, then the runs that count.

A model's search has the rates of the study. Where the best one is at an end, the next one beyond it follows, up to
BEYOND of them on each side: so a model is not held back by a grid that suits another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hybridlm.evaluation.comparison.study import Study, folder_name
from hybridlm.training.config import PretrainConfig, settings

BEYOND = 2
Record = dict[str, Any]

_NOT_OF_THE_NUMBERS = ("run", "checkpoint", "logging", "parallel")
"""Sections of a recipe that change no result."""
_NO_NUMBER = {
    "data.num_workers", "data.verify", "data.prepare.output", "data.prepare.workers", "data.prepare.overwrite",
    "data.prepare.sources.license",
}  # fmt: skip
"""Fields of the others that change none either."""


@dataclass(frozen=True)
class Job:
    """One run. stage: "search" or "final"."""

    study: Study
    model: str
    stage: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        rate = f"{self.rate:g}".replace("+", "")
        return f"{self.stage}-{folder_name(self.model)}-lr{rate}-seed{self.seed}"

    @cached_property
    def config(self) -> PretrainConfig:
        return self.study.config(self.model, self.stage, self.rate, self.seed)

    @cached_property
    def decides(self) -> dict[str, Any]:
        """All of the resolved recipe that decides the numbers."""
        return {name: value for name, value in settings(self.config).items() if name not in _NOT_OF_THE_NUMBERS}

    def words(self, runs: str | Path) -> list[str]:
        """Behind `hybridlm`, with the run below the folder `runs`."""
        overrides = self.study.overrides(self.model, self.stage, self.rate, self.seed)
        place = [f"run.folder={runs}", f"run.name={self.name}"]
        return ["pretrain", "--config", str(self.study.recipe), *overrides, *place]

    def is_named(self, record: Record) -> bool:
        """Whether the record is of this model, stage, rate and seed, by whatever recipe."""
        theirs = tuple(record[name] for name in ("model", "stage", "rate", "seed"))
        return theirs == (self.model, self.stage, self.rate, self.seed)

    def is_of(self, record: Record) -> bool:
        """Whether the record is of this run, by a recipe that gives the same numbers."""
        return self.is_named(record) and difference(self, record) is None


def difference(job: Job, record: Record) -> str | None:
    """The first field that decides a number and differs, as text; None: there is none.

    A field that only one of the two knows is of another version of hybridlm, whose default does as before, and does not
    count; of the model, whose section holds what was given, it does.
    """
    return next(_differences(job.decides, record["recipe"]), None)


def _differences(now: Any, then: Any, at: str = "") -> Iterator[str]:
    if at in _NO_NUMBER:
        return
    if isinstance(now, dict) and isinstance(then, dict):
        named = at == "model" or at.startswith("model.")
        for name in dict.fromkeys([*now, *then]):
            if (name in now and name in then) or named:
                yield from _differences(now.get(name), then.get(name), f"{at}.{name}".lstrip("."))
    elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        for mine, theirs in zip(now, then, strict=True):
            yield from _differences(mine, theirs, at)
    elif now != then:
        yield f"{at}: was {then}, is now {now}"


def record_of(job: Job, records: Iterable[Record]) -> Record | None:
    return next((record for record in records if job.is_of(record)), None)


def final_records(study: Study, model: str, records: Sequence[Record]) -> list[Record]:
    """Those of a model's final runs that there are, in the order of the seeds; all of them where every rate failed."""
    failed, rate = _final_rates(study, model, records)
    return _finals_at(study, model, failed if rate is None else [rate], records)


def counted(study: Study, records: Sequence[Record]) -> list[Record]:
    """The records that are of the study as it is now, in its order; also those of rates at which all final runs
    failed."""
    found = []
    for model in study.models:
        search = (record_of(job, records) for job in searched(study, model, records))
        found += [record for record in search if record is not None]
        failed, rate = _final_rates(study, model, records)
        found += _finals_at(study, model, failed if rate is None else [*failed, rate], records)
    return found


def _finals_at(study: Study, model: str, rates: Sequence[float], records: Sequence[Record]) -> list[Record]:
    jobs = [Job(study, model, "final", rate, seed) for rate in rates for seed in study.seeds]
    return [record for job in jobs if (record := record_of(job, records)) is not None]


def due(study: Study, records: Sequence[Record]) -> list[Job]:
    """The jobs without a record whose turn it is: of a model that is still searched for, its rates; of others, the
    final runs, the first seed of all models first."""
    found: list[Job] = []
    finals: list[Job] = []
    for model in study.models:
        search = searched(study, model, records)
        missing = [job for job in search if record_of(job, records) is None]
        found += missing
        if not missing and (rate := best_rate(study, model, records)) is not None:
            finals += [Job(study, model, "final", rate, seed) for seed in study.seeds]
    finals.sort(key=lambda job: study.seeds.index(job.seed))
    return found + [job for job in finals if record_of(job, records) is None]


def searched(study: Study, model: str, records: Sequence[Record]) -> list[Job]:
    """The jobs of a model's search, ascending: those of the study, and the ones beyond its ends by now."""
    rates = list(study.rates)
    if len(rates) == 1:  # nothing is searched for
        return []
    down, up = rates[0] / rates[1], rates[-1] / rates[-2]

    def job(rate: float) -> Job:
        return Job(study, model, "search", rate, study.seeds[0])

    for _ in range(2 * BEYOND):
        scores = [_score(record_of(job(rate), records)) for rate in rates]
        if None in scores:
            break
        best = scores.index(min(score for score in scores if score is not None))
        if best == 0 and rates[0] > study.rates[0] * down ** (BEYOND - 0.5):
            rates.insert(0, _round(rates[0] * down))
        elif best == len(rates) - 1 and rates[-1] < study.rates[-1] * up ** (BEYOND - 0.5):
            rates.append(_round(rates[-1] * up))
        else:
            break
    return [job(rate) for rate in rates]


def best_rate(study: Study, model: str, records: Sequence[Record]) -> float | None:
    """The learning rate whose search has the fewest bits per byte on the validation split; where the final runs of all
    seeds failed at it, the best one below it. None: every one failed, or the search goes on."""
    return _final_rates(study, model, records)[1]


def _final_rates(study: Study, model: str, records: Sequence[Record]) -> tuple[list[float], float | None]:
    """The rates at which the final runs of all seeds failed, and the one whose turn it is."""
    failed: list[float] = []
    for rate in _ranked(study, model, records):
        if failed and rate > min(failed):
            continue
        finals = _finals_at(study, model, [rate], records)
        if len(finals) < len(study.seeds) or not all(record.get("failed") for record in finals):
            return failed, rate
        failed.append(rate)
    return failed, None


def _ranked(study: Study, model: str, records: Sequence[Record]) -> list[float]:
    """The rates that the final runs may have, the best of the search first; none while that goes on."""
    if len(study.rates) == 1:
        return list(study.rates)
    scores = [(_score(record_of(job, records)), job.rate) for job in searched(study, model, records)]
    known = [(score, rate) for score, rate in scores if score is not None]
    return [rate for score, rate in sorted(known) if score != float("inf")] if len(known) == len(scores) else []


def _score(record: Record | None) -> float | None:
    """Bits per byte; infinite for a run that failed, None for one that was not done."""
    if record is None:
        return None
    return float("inf") if record.get("failed") else record["bits_per_byte"]


def _round(rate: float) -> float:
    """Three digits: what is multiplied stays a number that can be read."""
    return float(f"{rate:.3g}")
