"""Denoising: a few flagged values among noise, to be given back in order at the end."""

from __future__ import annotations

from functools import partial

import torch

from hybridlm.evaluation.memory.copying import FACTORS
from hybridlm.evaluation.memory.task import Batch, Budget, Task, Test, random_distinct

FLAGGED = 5
"""Values to remember, and queries at the end."""


class Denoising(Task):
    """Two channels a step: a value ~ N(0, 1) and a flag. The flag is -1 during T steps, but +1 at 5 of them, distinct
    and at random. Then come 5 queries, whose flag is 0: at each the next of the flagged values is asked, in order of
    time. The value channel goes on as noise during the queries, so that the flag alone tells them.

    Trained and tested on the squared error; always answering 0 gives 1.

    late: the last half of the T steps carries no flag, so that even the last value has to be held for as long (the
    forgetting period of the source). That holds in the longer tests as well.

    Source: the denoising benchmark of Vecoven, Ernst & Drion, A bio-inspired bistable recurrent cell allows for
    long-lasting memory, 2021 (arXiv 2006.05252), with T = 400, used by the MRU papers. Here the queries come after the
    T steps, and T is 10 and 100 times as long in further tests. The quick form has T = 100.
    """

    symbols, numbers, inputs = False, True, 2

    def __init__(self, quick: bool = False, late: bool = False):
        super().__init__(quick)
        self.late = late
        self.steps = 100 if quick else 400
        self.budget = Budget(1500 if quick else 3000, 32)

    def make(self, steps: int, rows: int, generator: torch.Generator) -> Batch:
        length = steps + FLAGGED
        values = torch.randn(rows, length, generator=generator)
        flagged = random_distinct(steps // 2 if self.late else steps, FLAGGED, rows, generator).sort(1).values
        flags = torch.full((rows, length), -1.0)
        flags[:, steps:] = 0.0
        flags.scatter_(1, flagged, 1.0)
        targets = torch.full((rows, length), torch.nan)
        targets[:, steps:] = values.gather(1, flagged)
        return Batch(torch.stack([values, flags], dim=-1), targets)

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(self.steps, rows, generator)

    def tests(self) -> list[Test]:
        rows = {1: 256, 10: 128, 100: 32}
        return [
            Test(f"{factor}x", factor * self.steps + FLAGGED, rows[factor], partial(self.make, factor * self.steps))
            for factor in FACTORS
        ]
