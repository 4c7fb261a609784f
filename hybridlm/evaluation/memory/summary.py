"""Records of runs over seeds: one score for every test of a task, form, mixer and change of the recipe.

Runs whose training diverged are counted, and are not in the scores.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.families import mixer_order, task_order
from hybridlm.evaluation.memory.recipe import named_recipe
from hybridlm.evaluation.memory.store import agree

Kind = Literal["error rate", "squared error", "failing length"]

_NEEDED = ("task", "form", "mixer", "seed", "changed", "settings", "loss", "tests")
_Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Score:
    """One test over the seeds.

    kind: None where no run has a number. values: a number per run that did not diverge; infinity stands for a failing
    length beyond `length`, and for an error that is not finite. wrong, asked: over these runs, 0 where errors are not
    counted. rows: sequences over these runs. skipped: why no run has a number. diverged: runs that have none.
    """

    test: str
    length: int
    kind: Kind | None
    values: tuple[float, ...]
    wrong: int = 0
    asked: int = 0
    rows: int = 0
    skipped: str | None = None
    diverged: int = 0

    @property
    def middle(self) -> float:
        """The mean; of failing lengths the median, the shorter of the middle two where their number is even."""
        if self.kind == "failing length":
            return statistics.median_low(self.values)
        return sum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def best(self) -> float:
        return self.high if self.kind == "failing length" else self.low

    @property
    def worst(self) -> float:
        return self.low if self.kind == "failing length" else self.high

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the error rate, over the counts of all runs together; None unless sequences were asked many times."""
        return wilson(self.wrong, self.asked) if self.kind == "error rate" and self.asked > self.rows else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only. diverged: the seeds whose training did. scores: by the tests' names, in
    their order."""

    task: str
    form: str
    mixer: str
    changed: dict[str, Any]
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    scores: dict[str, Score]
    records: tuple[dict[str, Any], ...]

    @property
    def standard(self) -> bool:
        return not self.changed

    @property
    def kept(self) -> bool:
        """Whether a trained model of the runs was kept."""
        return any(record.get("kept") for record in self.records)

    @property
    def recipe(self) -> str | None:
        """The named recipe that was changed, if any, or else the standard one."""
        return named_recipe(self.changed)[0]

    @property
    def change(self) -> str:
        """Such as "lr=0.001, threshold_init=0.25", with the name of a recipe first."""
        recipe, changed = named_recipe(self.changed)
        parts = [f"{name}={value_text(value)}" for name, value in sorted(changed.items())]
        return ", ".join([recipe, *parts] if recipe else parts)


def summarize(records: Iterable[dict[str, Any]]) -> list[Group]:
    """Groups in the order of tables: task, form, mixer, the standard recipe before changed and named ones.

    Of records with the same task, form, mixer, change and seed the last counts; of a group whose runs had different
    settings, those that had the last ones. Raises UserError where a record lacks a field.
    """
    groups: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, record in enumerate(records, 1):
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise UserError(
                f"record {number}: it has no field {missing[0]!r}. A record has {', '.join(_NEEDED)}; "
                "leave this one out."
            )
        key = (record["task"], record["form"], record["mixer"], json.dumps(record["changed"], sort_keys=True))
        if not agree(last.get(key, record), record):
            groups[key] = {}
        last[key] = record
        groups.setdefault(key, {})[record["seed"]] = record
    made = [_group([runs[seed] for seed in sorted(runs)]) for runs in groups.values()]
    return sorted(made, key=_order)


def wilson(wrong: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (Wilson, 1927)."""
    rate, square = wrong / asked, _Z**2
    centre = (rate + square / (2 * asked)) / (1 + square / asked)
    half = _Z * math.sqrt(rate * (1 - rate) / asked + square / (4 * asked**2)) / (1 + square / asked)
    return (max(0.0, centre - half) if wrong else 0.0), (min(1.0, centre + half) if wrong < asked else 1.0)


def value_text(value: Any) -> str:
    """A setting as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def columns_of(groups: Sequence[Group], failing: bool = True) -> list[str]:
    """The names of the tests of any of the groups, in their order; without those for failing lengths if not
    `failing`."""
    names = dict.fromkeys(name for group in groups for name in group.scores)
    return [name for name in names if failing or not is_failing(groups, name)]


def is_failing(groups: Sequence[Group], test: str) -> bool:
    """Whether a test of the groups, which are of one task, is for failing lengths."""
    return any(test in group.scores and group.scores[test].kind == "failing length" for group in groups)


def _order(group: Group) -> tuple[Any, ...]:
    recipe, changed = named_recipe(group.changed)
    return task_order(group.task), group.form, mixer_order(group.mixer), recipe or "", len(changed), group.change


def _group(records: list[dict[str, Any]]) -> Group:
    first = records[0]
    diverged = [record for record in records if record["loss"] is None]
    names = dict.fromkeys(test["name"] for record in records for test in record["tests"])
    return Group(
        first["task"],
        first["form"],
        first["mixer"],
        first["changed"],
        tuple(record["seed"] for record in records),
        tuple(record["seed"] for record in diverged),
        {name: _score(name, records) for name in names},
        tuple(records),
    )


def _score(name: str, records: list[dict[str, Any]]) -> Score:
    every = [(record, test) for record in records for test in record["tests"] if test["name"] == name]
    skipped = next((test["skipped"] for _, test in every if "skipped" in test), None)
    run = [test for record, test in every if record["loss"] is not None and "skipped" not in test]
    run = [test for test in run if test.get("asked") != 0]
    diverged = sum(record["loss"] is None and "skipped" not in test for record, test in every)
    length = every[-1][1]["length"]
    if not run:
        return Score(name, length, None, (), skipped=skipped, diverged=diverged)
    kind = _kind(run[0])
    values = tuple(_value(test, kind) for test in run)
    wrong = sum(test["wrong"] for test in run) if kind == "error rate" else 0
    asked = sum(test["asked"] for test in run) if kind == "error rate" else 0
    return Score(name, length, kind, values, wrong, asked, sum(test["rows"] for test in run), diverged=diverged)


def _kind(test: dict[str, Any]) -> Kind:
    if "failing" in test:
        return "failing length"
    return "squared error" if "mse" in test else "error rate"


def _value(test: dict[str, Any], kind: Kind) -> float:
    if kind == "error rate":
        return test["wrong"] / test["asked"]
    value = test["failing" if kind == "failing length" else "mse"]
    return math.inf if value is None or math.isnan(value) else value
