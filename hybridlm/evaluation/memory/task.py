"""What a task is: batches to train on, and tests, most of them far longer than what was trained on.

Tasks draw everything from the generator that they are given, so that a seed gives the same data to every mixer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

IGNORED = -100
"""The target where nothing is asked, in tasks of symbols. In tasks of numbers it is NaN."""


@dataclass(frozen=True)
class Batch:
    """inputs: symbols (B, T) int64, or values (B, T, C) fp32. targets (B, T): classes int64, `IGNORED` where nothing is
    asked; or fp32 numbers, NaN where nothing is asked."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Test:
    """One condition that a trained model is measured in.

    name: what tables call it, such as "10x". length: T of its sequences. rows: how many of them. make: draws them, a
    part of the rows at a time, as `make(rows, generator)`. failing: stop once more than a tenth of the rows had an
    error, and report the length at which that was; only where every position is asked.
    """

    __test__ = False  # pytest

    name: str
    length: int
    rows: int
    make: Callable[[int, torch.Generator], Batch]
    failing: bool = False


@dataclass(frozen=True)
class Budget:
    """How much a form of a task is trained: optimizer steps, and sequences in each."""

    steps: int
    rows: int


class Task(ABC):
    """A task in one of its two forms. The class's docstring defines it and names its source."""

    symbols: ClassVar[bool] = True
    """Whether inputs are symbols (embedded) or values (projected)."""
    numbers: ClassVar[bool] = False
    """Whether targets are numbers (squared error) or classes (cross-entropy)."""
    version: ClassVar[int] = 1
    """Counted up where the definition changes, so that records of an older one are not mixed with new ones."""
    inputs: int
    """How many symbols there are, or how many channels the values have."""
    outputs: int = 1
    """How many classes there are; 1 where targets are numbers."""
    budget: Budget

    def __init__(self, quick: bool = False):
        self.quick = quick

    def check(self) -> None:  # noqa: B027 (most tasks need no data)
        """Raises UserError where the data of the task is not to be had."""

    @abstractmethod
    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        """Sequences to train on."""

    @abstractmethod
    def tests(self) -> list[Test]:
        """What is measured, in the order of the tables' columns."""


def asked_at_end(inputs: Tensor, answers: Tensor) -> Batch:
    """A batch whose only target, (B,), is at the last position."""
    nothing = torch.nan if answers.is_floating_point() else IGNORED
    targets = torch.full(inputs.shape[:2], nothing, dtype=answers.dtype)
    targets[:, -1] = answers
    return Batch(inputs, targets)


def random_integers(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [low, high), int64."""
    return torch.randint(low, high, shape, generator=generator)


def random_distinct(
    count: int, size: int, rows: int, generator: torch.Generator, weights: Tensor | None = None
) -> Tensor:
    """(rows, size) int64: in each row so many distinct numbers of [0, count), in the order in which they are drawn.

    weights (count,): each draw takes one of the numbers still left with a probability in proportion to its weight;
    None: all alike. Drawn as the first arrivals of processes with these rates, which has the same distribution.
    """
    arrivals = torch.empty(rows, count).exponential_(generator=generator)
    return (arrivals if weights is None else arrivals / weights).topk(size, largest=False).indices
