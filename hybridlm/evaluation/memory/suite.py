"""All runs of a suite: which are to be done, workers that do them, and a line for each.

A run that the store has is not done again, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import transformers

import hybridlm
from hybridlm.errors import UserError, did_you_mean
from hybridlm.evaluation.memory.certificates import read_certificates
from hybridlm.evaluation.memory.families import MIXERS as MIXERS
from hybridlm.evaluation.memory.formal import Automaton
from hybridlm.evaluation.memory.kept import check_keeping, is_kept, keep_model, models
from hybridlm.evaluation.memory.model import MemoryModel
from hybridlm.evaluation.memory.page import write_page
from hybridlm.evaluation.memory.recipe import OF_AUTOMATA, Recipe, named_recipe
from hybridlm.evaluation.memory.registry import BY_NAME, TASKS
from hybridlm.evaluation.memory.running import run
from hybridlm.evaluation.memory.store import Key, Store, agree, key_of
from hybridlm.evaluation.memory.summary import summarize, value_text
from hybridlm.evaluation.memory.table import all_tables
from hybridlm.evaluation.plots import NoMatplotlibError
from hybridlm.files import remove_dead_writes_in, try_folder
from hybridlm.training.session import cpu_threads
from hybridlm.training.signals import exit_on_sigterm


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to do."""

    task: str
    mixer: str
    seed: int
    quick: bool
    recipe: Recipe
    settings: dict[str, Any]
    """Of recipe and model."""
    device: str = "cpu"
    keep: Path | None = None
    """Folder of the store, where the trained model is kept too; None: it is not."""

    def record(self) -> dict[str, Any]:
        """What is known of its record beforehand."""
        task = TASKS[self.task](self.quick)
        steps, rows = self.recipe.steps or task.budget.steps, task.budget.rows
        return {
            "task": self.task,
            "form": "quick" if self.quick else "standard",
            "mixer": self.mixer,
            "seed": self.seed,
            "changed": self.recipe.changed(),
            "steps": steps,
            "rows": rows,
            "settings": {**self.settings, "steps": steps, "rows": rows, "task_version": task.version},
        }


def tasks_named(patterns: Sequence[str]) -> list[str]:
    """The tasks that the names, in which * and ? are wildcards, stand for. Raises UserError for one that matches
    nothing."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in TASKS if fnmatchcase(name, pattern)]
        if not matching:
            hint = did_you_mean(pattern, TASKS)
            raise UserError(f"task {pattern!r}: there is none{hint or '.'} Tasks: {', '.join(TASKS)}.")
        found.update(dict.fromkeys(matching))
    return list(found)


def default_tasks() -> list[str]:
    """All tasks but those that must be named."""
    return [name for name in TASKS if name not in BY_NAME]


def plan(
    tasks: Sequence[str],
    mixers: Sequence[str],
    seeds: Sequence[int],
    quick: bool,
    recipe: Recipe,
    device: str = "cpu",
    keep: Path | None = None,
) -> list[Job]:
    """All jobs, every task and mixer with the first seed first. Raises UserError for a mixer that cannot be built, data
    that is not to be had, a device that is not there, or a task whose models cannot be kept where they are to be."""
    if keep is not None:
        check_keeping(tasks)
    settings = {recipe.name(mixer): recipe.settings(mixer) for mixer in mixers}
    for task in tasks:
        made = TASKS[task](quick)
        made.check()
        for field in OF_AUTOMATA:
            if field in recipe.changed() and not isinstance(made, Automaton):
                raise UserError(
                    f"set {field}={value_text(recipe.changed()[field])}: {task} is no automaton. Leave it out, and a "
                    "recipe that has it, or give --tasks with formal languages alone."
                )
        if recipe.longest is not None and isinstance(made, Automaton) and recipe.longest == made.tests()[-1].length:
            raise UserError(f"set longest={recipe.longest}: {task} is followed so far anyway. Leave it out.")
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device!r}: not available here ({str(error).splitlines()[0]}).") from None
    return [
        Job(task, mixer, seed, quick, recipe, settings[mixer], device, keep)
        for seed in seeds
        for task in tasks
        for mixer in settings
    ]


def do(jobs: Sequence[Job], store: Store, say: Callable[[str], None], workers: int = 1) -> int:
    """Does the jobs that the store has no record of, and returns how many those were.

    say gets a line for each, and one beforehand. A run that fails does not end the others. Raises UserError at the end
    where some failed, and where a worker was killed, and SystemExit after SIGTERM; what is done by then is in the
    store, and nothing half-written beside it.
    """
    store.prepare()
    kept = {models(job.keep) for job in jobs if job.keep is not None}
    for folder in kept:
        try:
            try_folder(folder)
        except OSError as error:
            raise UserError(f"keep: {folder} cannot be written to ({error.strerror}). Give another --out.") from None
        remove_dead_writes_in(folder)
    there = {key_of(record): record for record in store.records()}
    waiting = [job for job in jobs if not _is_done(job, there)]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are in {store.folder} already.")
    workers = min(workers, len(waiting))
    if waiting:
        say(_beforehand(waiting, workers))
    began, failed = time.monotonic(), 0
    try:
        with exit_on_sigterm(), closing(_results(waiting, workers)) as results:
            for number, record in enumerate(results, start=1):
                if "error" in record:
                    failed += 1
                else:
                    store.add(record)
                left = (time.monotonic() - began) / number * (len(waiting) - number)
                say(f"[{number}/{len(waiting)}, {_duration(left)} left] {line(record)}")
    finally:
        for folder in kept:
            remove_dead_writes_in(folder)  # of workers that were ended while they wrote
    if failed:
        raise UserError(f"{failed} of {len(waiting)} runs failed, see above; the same command tries them again.")
    return len(waiting)


def _beforehand(jobs: Sequence[Job], workers: int) -> str:
    first = f"{jobs[0].task} {jobs[0].mixer!r} seed {jobs[0].seed}"
    if len(jobs) == 1:
        return f"1 run to do: {first}. Its line comes when it ends."
    return f"{len(jobs)} runs to do, {workers} at a time, beginning with {first}. Each has a line when it ends."


def _is_done(job: Job, there: dict[Key, dict[str, Any]]) -> bool:
    record = job.record()
    found = there.get(key_of(record))
    return found is not None and agree(found, record) and (job.keep is None or is_kept(job.keep, record))


def tables(jobs: Sequence[Job], store: Store) -> str:
    """The tables of what the store has of these jobs, as plain text."""
    asked = {key_of(job.record()) for job in jobs}
    return all_tables(summarize([record for record in store.records() if key_of(record) in asked]))


def write_results(store: Store) -> Path:
    """Writes the page of all records into their folder, with pictures where matplotlib is installed; returns its
    path."""
    page, certificates = store.folder / "memory_suite.md", read_certificates(store.folder)
    try:
        return write_page(store.records(), page, store.folder / "pictures", certificates)
    except NoMatplotlibError:
        return write_page(store.records(), page, None, certificates)


def line(record: dict[str, Any]) -> str:
    """A record in one line."""
    recipe, changed = named_recipe(record["changed"])
    parts = [f"{name}={value_text(value)}" for name, value in changed.items()]
    change = "".join(f" {part}" for part in ([recipe, *parts] if recipe else parts))
    if "error" in record:
        return f"{record['task']} {record['mixer']!r}{change} seed {record['seed']}: FAILED, {record['error']}"
    loss = "diverged" if record["loss"] is None else f"loss {record['loss']:.3g}"
    results = ", ".join(f"{test['name']} {_result(test)}" for test in record["tests"])
    seconds = record["seconds_training"] + record["seconds_testing"]
    return f"{record['task']} {record['mixer']!r}{change} seed {record['seed']}: {loss}; {results} ({seconds:.0f} s)"


def _result(test: dict[str, Any]) -> str:
    if "skipped" in test:
        return "skipped"
    if "failing" in test:
        return f">{test['length']}" if test["failing"] is None else str(test["failing"])
    if "mse" in test:
        return "not finite" if test["mse"] is None else f"{test['mse']:.3g}"
    return f"{100 * test['wrong'] / test['asked']:.3g} %"


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def _results(jobs: Sequence[Job], workers: int) -> Generator[dict[str, Any], None, None]:
    """The records of the jobs as they are done."""
    if workers <= 1:
        yield from map(_do, jobs)
        return
    threads = max(1, cpu_threads() // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, _context(), _begin, (threads,))
    try:
        with _without_ctrl_c():
            futures = [pool.submit(_do, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            f"workers={workers}: one was killed, perhaps for want of memory. Give the same command again, with fewer "
            "workers; it goes on from what is done."
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Workers are forked from a server of their own, which imports the libraries once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # on Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C, their imports included: it is their parent's affair, with which
    they end. One that comes meanwhile reaches the parent afterwards."""
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
    before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else None
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)


def _begin(threads: int) -> None:
    """A worker's start."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _do(job: Job) -> dict[str, Any]:
    """A job's record; where it failed, what is known beforehand and the `error`."""
    known = job.record()
    versions = {module.__name__: module.__version__ for module in (hybridlm, torch, transformers)}
    made = {"versions": versions, "threads": torch.get_num_threads(), "device": job.device}
    if job.keep is not None:
        made["kept"] = True

    def keep(model: MemoryModel, result: dict[str, Any]) -> None:
        if job.keep is not None:
            keep_model(model, job.keep, {**known, **result, **made})

    try:
        task = TASKS[job.task](job.quick)
        result = run(task, job.mixer, job.seed, job.recipe, device=torch.device(job.device), keep=keep)
    except Exception as error:  # of torch, of the machine: the other jobs can still be done
        return {**known, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {**known, **result, **made}
