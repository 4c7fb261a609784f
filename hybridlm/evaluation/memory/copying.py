"""Copying across noise: the first input, flagged inputs, and coloured symbols among blanks."""

from __future__ import annotations

from functools import partial

import torch

from hybridlm.evaluation.memory.task import Batch, Budget, Task, Test, asked_at_end, random_integers

FACTORS = (1, 10, 100)
"""Test lengths of the tasks that are trained at one length, as multiples of it."""


class CopyFirst(Task):
    """Copy the first input: x_0 ... x_T ~ N(0, 1), one number a step; after the last one, x_0 is asked.

    Trained and tested on the squared error; always answering 0 gives 1.

    Source: the copy-first-input benchmark of Vecoven, Ernst & Drion, A bio-inspired bistable recurrent cell allows for
    long-lasting memory, 2021 (arXiv 2006.05252), used by the MRU papers. Here T steps of noise follow x_0, and tests
    have 10 T and 100 T as well.
    """

    symbols, numbers, inputs = False, True, 1

    def __init__(self, steps: int, quick: bool = False):
        super().__init__(quick)
        self.steps = steps
        self.budget = Budget(400 if quick else 2000, 16 if quick and steps > 100 else 32)

    def make(self, steps: int, rows: int, generator: torch.Generator) -> Batch:
        values = torch.randn(rows, steps + 1, 1, generator=generator)
        return asked_at_end(values, values[:, 0, 0].clone())

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(self.steps, rows, generator)

    def tests(self) -> list[Test]:
        rows = {1: 256, 10: 128, 100: 32}
        return [
            Test(f"{factor}x", factor * self.steps + 1, rows[factor], partial(self.make, factor * self.steps))
            for factor in FACTORS
        ]


class CopyFirstSymbol(CopyFirst):
    """The discrete form of copying the first input: T + 1 symbols, uniform among 8; after the last one, the first one
    is asked. Chance is 1/8."""

    symbols, numbers, inputs, outputs = True, False, 8, 8

    def __init__(self, steps: int, quick: bool = False):
        super().__init__(steps, quick)
        self.budget = Budget(600 if quick else 4000, self.budget.rows)

    def make(self, steps: int, rows: int, generator: torch.Generator) -> Batch:
        symbols = random_integers(0, self.inputs, (rows, steps + 1), generator)
        return asked_at_end(symbols, symbols[:, 0].clone())
