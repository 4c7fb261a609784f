"""Cells of a table, each a model in a situation, measured in turn; each in a process of its own, or all in this one.

In a process of its own a cell's memory is its own, it can be ended when it takes too long, and running out of memory
ends nothing else. What did not come to an end has a problem instead of a figure.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

import torch

from hybridlm.bench.timing import ALLOCATORS

Key = TypeVar("Key", str, tuple[str, ...])


class Cell(Protocol):
    """Picklable as it is made; everything large is made in `prepare`."""

    def prepare(self) -> dict[str, Any]:
        """Builds and warms up; facts for the record."""
        ...

    def measure(self) -> dict[str, float]:
        """One round: figures by name."""
        ...


class Problem(Exception):
    """Why a cell has no figure."""


START = 300
"""Seconds that a process may take to import what it needs."""


class Here:
    """A cell in this process, which has its threads and its allocator already. Nothing can end it."""

    def __init__(self, cell: Cell, _threads: int, _allocator: str):
        self.cell = cell

    def wait(self) -> None:
        """It is there."""

    def call(self, method: str, _seconds: float) -> Any:
        try:
            return getattr(self.cell, method)()
        except Exception as error:  # whatever it is, the other cells go on
            raise Problem(_words(error)) from error

    def close(self) -> None:
        """The model goes with the cell."""
        del self.cell


class Apart:
    """A cell in a process of its own."""

    def __init__(self, cell: Cell, threads: int, allocator: str):
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, cell, threads, allocator), daemon=True)
        self.process.start()
        there.close()

    def wait(self) -> None:
        """Until the process has begun. Raises Problem where it does not."""
        self._answer(START)

    def call(self, method: str, seconds: float) -> Any:
        """What the method returns. Raises Problem where it fails or takes longer."""
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            self.here.send(method)
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Any:
        try:
            if not self.here.poll(seconds):
                raise Problem(f"over the limit of {seconds:.0f} s")
            good, answer = self.here.recv()
        except (EOFError, OSError):
            self.process.join(10)
            raise Problem(f"the process ended by itself, with exit code {self.process.exitcode}") from None
        if not good:
            raise Problem(answer)
        return answer

    def close(self) -> None:
        self.here.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, cell: Cell, threads: int, allocator: str) -> None:
    """In the other process: one call after another, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(threads)
    with ALLOCATORS[allocator]():
        connection.send((True, None))
        while True:
            try:
                method = connection.recv()
            except EOFError:
                return
            try:
                connection.send((True, getattr(cell, method)()))
            except Exception as error:
                traceback.print_exc()
                connection.send((False, _words(error)))


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


@dataclass
class Outcome:
    """Figures of each round that was measured, and facts; or a problem."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def values(self, name: str) -> list[float]:
        return [figures[name] for figures in self.rounds]


def take_turns(
    cells: Mapping[Key, Cell],
    *,
    rounds: int,
    limit: float,
    threads: int,
    apart: bool = True,
    allocator: str = "system",
    beside: Callable[[], dict[str, float]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[Key, Outcome], list[dict[str, float]]]:
    """The outcome of every cell, and what `beside` gave, which runs in this process once a round.

    apart: each cell in a process of its own; else nothing ends it where it takes too long.
    allocator: of ALLOCATORS, here and in every process.
    limit: seconds for the preparation of a cell, and for the sum of its rounds. A cell that has used it up stays out of
    later rounds; one that did not get through a single round within it has a problem. Rounds begin with another cell
    every time.
    """
    outcomes: dict[Key, Outcome] = {key: Outcome() for key in cells}
    runners: dict[Key, Here | Apart] = {}
    left, took = dict.fromkeys(cells, limit), dict.fromkeys(cells, 0.0)
    others: list[dict[str, float]] = []
    with ALLOCATORS[allocator](), contextlib.ExitStack() as closing:
        closing.callback(lambda: [runner.close() for runner in runners.values()])
        for key, cell in cells.items():  # processes start side by side
            runners[key] = (Apart if apart else Here)(cell, threads, allocator)
        for key in cells:
            progress(f"preparing {key if isinstance(key, str) else ', '.join(key)}")
            _attempt(runners, outcomes, key, "wait", limit)
            if key in runners:
                _attempt(runners, outcomes, key, "prepare", limit)
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}")
            if beside is not None:
                others.append(beside())
            first = turn % max(1, len(runners))
            for key in [*runners][first:] + [*runners][:first]:
                if took[key] > left[key]:
                    continue
                begun = time.perf_counter()
                _attempt(runners, outcomes, key, "measure", left[key])
                took[key] = time.perf_counter() - begun
                left[key] -= took[key]
    return outcomes, others


def _attempt(
    runners: dict[Any, Here | Apart], outcomes: dict[Any, Outcome], key: Any, method: str, limit: float
) -> None:
    """Calls a method of a cell and keeps what it gave; a cell with a problem is closed. What it gave in earlier rounds
    stands."""
    outcome = outcomes[key]
    try:
        if method == "wait":
            return runners[key].wait()
        answer = runners[key].call(method, limit)
    except Problem as problem:
        runners.pop(key).close()
        if not outcome.rounds:
            outcome.problem = str(problem)
        return
    if method == "prepare":
        outcome.facts = answer
    elif method == "measure":
        outcome.rounds.append(answer)
