"""Processes that do the runs of a study, and the records of what they left.

A run is the command `hybridlm pretrain` that a user would give, a process of its own, with its output in a file beside
its folder; so it goes on from its checkpoint when it was stopped, and its record has the line that makes it again. A
final model is then measured on the test texts, and in generation, again with the commands.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import hybridlm
from hybridlm.errors import UserError
from hybridlm.evaluation.comparison.jobs import Job, Record, counted, difference, due
from hybridlm.evaluation.comparison.study import Study
from hybridlm.evaluation.info import describe
from hybridlm.evaluation.run_record import read_runs
from hybridlm.files import append_line, sha256, try_folder
from hybridlm.training.halt import REPORT
from hybridlm.training.result import result_of
from hybridlm.training.session import cpu_threads
from hybridlm.training.signals import exit_on_sigterm
from hybridlm.training.state import read_state

PAUSE = 0.2
"""Seconds between two looks at the processes."""
RECORDS = "records.jsonl"
_DIVERGED = {"spike": "the loss jumped", "validation": "the validation was not finite"}
"""By the kind that RUN/diverged.json tells; all others are of a loss, a gradient or a weight."""


class Store:
    """OUT/records.jsonl, a line for each run that was done; OUT/runs, their folders."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        self.path = self.folder / RECORDS
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"out={str(folder)!r}: is a file. Give a folder for the records.")

    def prepare(self) -> None:
        """Makes the folders. Raises UserError where they cannot be written to."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            try_folder(self.runs)
        except OSError as error:
            raise UserError(f"out={str(self.folder)!r}: cannot be written to ({error.strerror}).") from None

    def records(self) -> list[Record]:
        """In the order of their writing. A torn line is left out: its run is looked at again."""
        found = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if not isinstance(record, dict) or not {"model", "stage", "rate", "seed", "recipe"} <= set(record):
                raise UserError(f"{self.path}: not written by `hybridlm compare`. Take the file out of the folder.")
            found.append(record)
        return found

    def add(self, record: Record) -> None:
        """Appends a record. Raises UserError where it cannot be written: the run is there still, to be looked at
        again."""
        try:
            append_line(self.path, json.dumps(record, allow_nan=False))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written any more ({error.strerror}).") from None


class _Run:
    """A job that is being done: its training, and for a final run the test behind it. Processes have a session of their
    own, so that Ctrl-C reaches them through us alone."""

    def __init__(self, job: Job, store: Store, texts: Sequence[str], threads: int):
        self.job, self.texts, self.threads = job, texts, threads
        self.folder = store.runs / job.name
        self.log = store.runs / f"{job.name}.log"
        self.tests = self.folder / "evaluation" / "comparison.json"
        self.speed = self.folder / "evaluation" / "generation.json"
        self._waiting = [job.words(store.runs)]
        if job.stage == "final":
            self._waiting += [self._test_words()] if job.study.lengths else []
            self._waiting.append(self._speed_words())
        self._start()

    def _start(self) -> None:
        words = self._waiting.pop(0)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        self.doing = words[0]
        if self.doing != "pretrain":
            self.tests.parent.mkdir(exist_ok=True)
        elif self.folder.is_dir():  # one that is there behind the process was written by it
            (self.folder / REPORT).unlink(missing_ok=True)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "hybridlm_command", *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def is_over(self) -> bool:
        """Looks whether the process has ended; starts the next one where there is one."""
        code = self.process.poll()
        if code is None:
            return False
        if code == 0 and self._waiting:
            self._start()
            return False
        return True

    def end(self) -> None:
        """Lets the process save and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def _test_words(self) -> list[str]:
        words = ["evaluate", str(self.folder / "final"), "--out", str(self.tests)]
        words += [word for text in self.texts for word in ("--text", text)]
        return [*words, "--lengths", ",".join(map(str, self.job.study.lengths))]

    def _speed_words(self) -> list[str]:
        words = ["bench-generation", str(self.folder / "final"), "--no-peer", "--out", str(self.speed)]
        return [*words, "--positions", str(max(self.job.study.lengths, default=self.job.config.data.sequence_length))]

    def record(self) -> Record:
        """What was left. Raises UserError where the run is not at its end, and the same command would end so again."""
        job, code = self.job, self.process.returncode
        known: Record = {
            "model": job.model,
            "stage": job.stage,
            "rate": job.rate,
            "seed": job.seed,
            "recipe": job.decides,
            "command": shlex.join(["hybridlm", *job.words("RUNS")]),
            "versions": {module.__name__: module.__version__ for module in (hybridlm, torch, transformers)},
            "threads": self.threads,
        }
        if code != 0:
            # A loss that is not finite is a result: this learning rate is too high. Everything else is to be mended.
            why = _stopped_by_itself(self.folder) if self.doing == "pretrain" else None
            if why is not None:
                return {**known, "failed": why}
            raise UserError(f"it ended with exit code {code}: {_last_words(self.log)}")
        found = known | _measured(self.folder)
        if job.stage == "final":
            found |= {"test": _tested(self.tests)} if job.study.lengths else {}
            found["generation"] = _generated(self.speed)
        return found


def do(study: Study, store: Store, texts: Sequence[str], say: Callable[[str], None], workers: int = 1) -> None:
    """Does all that is due, `workers` runs at a time, until nothing is; say gets a line when a run begins and when it
    is done.

    Ctrl-C and SIGTERM are handed on to the runs, which save a checkpoint, and are waited for. Raises UserError at the
    end where a run ended in a way that the same command would end again.
    """
    store.prepare()
    records = store.records()
    _check_tests(study, records, texts)
    waiting = due(study, records)
    say(f"{len(records)} runs are on record; {len(waiting)} are due now.")
    for job in waiting:
        others = [found for record in records if job.is_named(record) and (found := difference(job, record))]
        if others:
            say(f"{_title(job)}: on record by another recipe, which does not count ({others[-1]}).")
    threads = max(1, cpu_threads() // workers)
    active: list[_Run] = []
    stuck: set[str] = set()
    with exit_on_sigterm():
        try:
            while waiting or active:
                while waiting and len(active) < workers:
                    job = waiting.pop(0)
                    say(f"begins: {_title(job)}")
                    active.append(_Run(job, store, texts, threads))
                time.sleep(PAUSE)
                for run in [each for each in active if each.is_over()]:
                    active.remove(run)
                    try:
                        store.add(record := run.record())
                    except UserError as error:
                        stuck.add(run.job.name)
                        say(f"{_title(run.job)}: STOPPED, {error}")
                        continue
                    records.append(record)
                    say(f"[{len(records)} on record] {line(record)}")
                    if run.job.stage == "search":
                        shutil.rmtree(run.folder, ignore_errors=True)  # what is left of it is its record
                    busy = stuck | {each.job.name for each in active}
                    waiting = [job for job in due(study, records) if job.name not in busy]
        finally:
            for run in active:
                run.end()
            for run in active:
                run.process.wait()
    if stuck:
        raise UserError(f"{len(stuck)} runs did not come to their end, see above; the same command tries them again.")


def _check_tests(study: Study, records: Sequence[Record], texts: Sequence[str]) -> None:
    """Raises UserError where final runs are on record that were measured on other texts, or in other contexts: one
    table is of one measurement."""
    given = {
        "texts": [Path(text).name for text in texts],
        "lengths": list(study.lengths),
        "sha256": [sha256(text) for text in texts],
    }
    for record in counted(study, records):
        if record["stage"] == "search" or record.get("failed"):
            continue
        test = record.get("test", {})
        theirs = {"texts": test.get("texts", []), "lengths": [row["length"] for row in test.get("by_context", [])]}
        theirs["sha256"] = test.get("sha256", given["sha256"])  # older records do not say
        for name, value in theirs.items():
            if value != given[name]:
                raise UserError(
                    f"{record['model']!r}, seed {record['seed']}, is on record with {name} {value}, and now they are "
                    f"{given[name]}. Give the same texts and lengths, or another --out."
                )


def line(record: Record) -> str:
    """A record in one line."""
    title = f"{record['stage']} {record['model']!r} lr {record['rate']:g} seed {record['seed']}"
    if record.get("failed"):
        return f"{title}: FAILED, {record['failed']}"
    tests = "".join(f", {test['name']} {test['bits_per_byte']:.4f}" for test in tests_of(record))
    pace = f"{record['tokens_per_second']:,.0f} tokens/s"
    return f"{title}: {record['bits_per_byte']:.4f} bits per byte{tests} ({pace}, {record['seconds']:,.0f} s)"


def tests_of(record: Record) -> list[dict[str, Any]]:
    """The rows of the test texts that have a number: name, length, bits_per_byte, standard_error."""
    rows = record.get("test", {}).get("by_context", [])
    return [{"name": f"at {row['length']:,}", **row} for row in rows if row.get("bits_per_byte") is not None]


def _title(job: Job) -> str:
    return f"{job.stage} {job.model!r} lr {job.rate:g} seed {job.seed}"


def _measured(folder: Path) -> Record:
    """From a finished run's own files."""
    [run] = read_runs([folder])
    result = result_of(folder)
    if not run.training or "bits_per_byte" not in result.validation:
        raise UserError(f"{result.metrics}: it has no validation. Let the recipe hold text out (validation.share).")
    facts = describe(result.checkpoint)
    return {
        "data": read_state(result.checkpoint).data_fingerprint,
        "parameters": facts["parameters"],
        "cache_bytes": facts["cache_bytes"],
        "cache_bytes_per_token": facts["cache_bytes_per_token"],
        "steps": run.training[-1]["step"],
        "tokens": run.training[-1]["tokens"],
        "loss": run.training[-1]["loss"],
        "bits_per_byte": result.validation["bits_per_byte"],
        "validation_bytes": result.validation["n_bytes"],
        "curve": [[row["step"], row["bits_per_byte"]] for row in run.validation],
        "tokens_per_second": float(np.nanmedian(run.column("tokens_per_second"))),
        "seconds": run.training[-1]["seconds"],
    }


def _stopped_by_itself(run: Path) -> str | None:
    """Why a training refused its next step, as RUN/diverged.json tells it; None: it ended for another reason."""
    try:
        found = json.loads((run / REPORT).read_text(encoding="utf-8"))
        why = _DIVERGED.get(found["kind"], "the loss or a gradient was not finite")
        return f"{why} at step {found['step']} of {found['total_steps']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tested(path: Path) -> Record:
    """What `hybridlm evaluate --lengths` wrote."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    [found] = facts["checkpoints"]
    kept = ("by_context", "by_position", "still_improves", "stops_improving_at", "worse_from")
    test: Record = {name: found[name] for name in kept}
    test |= {"texts": [Path(text).name for text in facts["texts"]], "n_bytes": facts["target_bytes"]}
    return test | {"sha256": facts["texts_sha256"]}


def _generated(path: Path) -> Record:
    """What `hybridlm bench-generation` wrote: at one position, tokens a second inside `generate`; or why none."""
    [row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    seconds = row.get("generate_seconds")
    return {"position": row["position"], "tokens_per_second": 1 / seconds if seconds else None}


def _last_words(log: Path) -> str:
    """The end of what a process said, in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(" ".join(lines[-10:]).split())[-600:] or "it wrote nothing"
