"""Cue and corridor: a cue, a long corridor in which nothing tells it again, and a junction where it decides."""

from __future__ import annotations

from functools import partial

import torch

from hybridlm.evaluation.memory.task import IGNORED, Batch, Budget, Task, Test, asked_at_end, random_integers

CUES = 4
"""How many cues a set has; each belongs to one action."""
LONGEST = 50
"""T of training is uniform in [1, LONGEST], one T a batch."""
ROWS = {1: 256, 10: 128, 100: 64, 1000: 16}
"""Sequences of a test by its T, as a multiple of the longest T of training. The last is of the standard form only."""
SHARE_OF_CUES = 0.1
"""Chance that a step of the corridor holds a further cue."""


class Corridor(Task):
    """One of 4 cues, T blanks, then a query, at which the action that belongs to the cue is asked. Chance is 1/4.

    Symbols: 0-3 cues, 4 blank, 5 query. T is uniform in [1, 50] in training, up to 50,000 in tests.

    Source: the T-maze of Bakker, Reinforcement learning with long short-term memory, NIPS 2001, as a supervised task.
    """

    inputs, outputs = CUES + 2, CUES
    BLANK, QUERY = CUES, CUES + 1

    def __init__(self, quick: bool = False):
        super().__init__(quick)
        self.budget = Budget(400 if quick else 2000, 64)

    def make(self, steps: int, rows: int, generator: torch.Generator) -> Batch:
        cues = random_integers(0, CUES, (rows,), generator)
        inputs = torch.full((rows, steps + 2), self.BLANK)
        inputs[:, 0], inputs[:, -1] = cues, self.QUERY
        return asked_at_end(inputs, cues)

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        steps = int(random_integers(1, LONGEST + 1, (1,), generator))
        return self.make(steps, rows, generator)

    def factors(self) -> list[int]:
        return [factor for factor in ROWS if factor < 1000 or not self.quick]

    def tests(self) -> list[Test]:
        return [
            Test(f"{factor}x", factor * LONGEST + 2, ROWS[factor], partial(self.make, factor * LONGEST))
            for factor in self.factors()
        ]


class CorridorTwo(Corridor):
    """The corridor, with further cues of a second set of 4 among the blanks, each overwriting the one before it.

    A step of the corridor is a further cue with chance 0.1; a corridor without one gets one at a random step. Behind
    it, two queries in random order ask for the first cue, which no other cue may overwrite, and for the last of the
    further cues. Chance is 1/4. The tests ask for one of the two at a time.

    Symbols: 0-3 first cues, 4 blank, 5-8 further cues, 9 query for the first, 10 query for the last.
    """

    inputs = 2 * CUES + 3
    FURTHER, FIRST, LAST = CUES + 1, 2 * CUES + 1, 2 * CUES + 2

    def make(self, steps: int, rows: int, generator: torch.Generator, asked: str = "both") -> Batch:
        """asked: "both", "first" or "last"."""
        cues = random_integers(0, CUES, (rows,), generator)
        further = random_integers(0, CUES, (rows, steps), generator)
        shown = torch.rand(rows, steps, generator=generator) < SHARE_OF_CUES
        fallback = random_integers(0, steps, (rows,), generator)
        shown[torch.arange(rows), fallback] |= ~shown.any(1)
        last = steps - 1 - shown.flip(1).int().argmax(1)
        first_is_asked_first = random_integers(0, 2, (rows, 1), generator).bool()

        both = torch.tensor([self.FIRST, self.LAST])
        queries = torch.where(first_is_asked_first, both, both.flip(0))
        corridor = torch.where(shown, further + self.FURTHER, self.BLANK)
        inputs = torch.cat([cues[:, None], corridor, queries], 1)
        answers = torch.where(queries == self.FIRST, cues[:, None], further.gather(1, last[:, None]))
        if asked != "both":
            answers = torch.where(queries == (self.FIRST if asked == "first" else self.LAST), answers, IGNORED)
        targets = torch.full_like(inputs, IGNORED)
        targets[:, -2:] = answers
        return Batch(inputs, targets)

    def tests(self) -> list[Test]:
        return [
            Test(
                f"{factor}x {asked}",
                factor * LONGEST + 3,
                ROWS[factor],
                partial(self.make, factor * LONGEST, asked=asked),
            )
            for factor in self.factors()
            for asked in ("last", "first")
        ]
