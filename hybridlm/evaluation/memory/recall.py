"""Recall by content: copying what stands among blanks, and looking up the value that a key came with."""

from __future__ import annotations

from functools import partial

import torch

from hybridlm.evaluation.memory.task import IGNORED, Batch, Budget, Task, Test, random_distinct, random_integers


class SelectiveCopying(Task):
    """K data symbols, uniform among A, at random positions in a stretch of T that is blank otherwise; then K query
    symbols, at each of which the next of the data symbols is asked, in order. Chance is 1/A.

    Symbols: 0 is the blank, 1 ... A are data, A + 1 is the query. Classes: 0 ... A - 1.

    Source: Gu & Dao, Mamba, 2023 (arXiv 2312.00752), after the denoising task of Jing et al., Gated orthogonal
    recurrent units, 2019 (arXiv 1706.02761): 16 data symbols in a vocabulary of 16 (so A = 14), there in sequences of
    4,096. Here the standard form has T = 256, and the quick one K = A = 8 and T = 64; tests go to 16 times the stretch,
    which the same K data symbols spread over.
    """

    def __init__(self, quick: bool = False):
        super().__init__(quick)
        self.data, self.outputs, self.stretch = (8, 8, 64) if quick else (16, 14, 256)
        self.inputs = self.outputs + 2
        self.budget = Budget(900 if quick else 4000, 64)

    def make(self, stretch: int, rows: int, generator: torch.Generator) -> Batch:
        classes = random_integers(0, self.outputs, (rows, self.data), generator)
        positions = random_distinct(stretch, self.data, rows, generator).sort(1).values
        inputs = torch.zeros(rows, stretch + self.data, dtype=torch.int64)
        inputs[:, stretch:] = self.outputs + 1
        inputs.scatter_(1, positions, classes + 1)
        targets = torch.full_like(inputs, IGNORED)
        targets[:, stretch:] = classes
        return Batch(inputs, targets)

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(self.stretch, rows, generator)

    def tests(self) -> list[Test]:
        rows = {1: 256, 4: 128, 16: 64}
        return [
            Test(f"{factor}x", factor * self.stretch + self.data, count, partial(self.make, factor * self.stretch))
            for factor, count in rows.items()
        ]


POWER = 0.01
"""a of MQAR: gap g has a probability proportional to g^(a - 1), nearly 1/g."""


class MultiQueryRecall(Task):
    """Multi-query associative recall, MQAR: K pairs of a key and a value, then each key once more, whose value is asked
    where the key stands.

    Of V symbols the keys are 1 ... V/2 - 1 and the values V/2 ... V - 1, each distinct within a sequence. The pairs
    fill the first 2 K positions. The rest is cut into slots of two positions; a key is queried at the first position of
    its slot, and key after key draws its slot s = 1, 2, ... among those still free, with a probability proportional to
    s^(a - 1), a = 0.01. The value is the target there, but does not follow in the input: every position that holds
    neither a pair nor a query holds a symbol uniform among all V, keys included, and asks for nothing. Classes are the
    symbols; answering with one of the K values seen is right in 1 of K.

    Source: Arora et al., Zoology: Measuring and improving recall in efficient language models, 2023 (arXiv 2312.04927),
    with random symbols at the positions that are not queries, as in its published code. That asks for more symbols than
    a sequence has positions; here V is 512 with T = 128 and K = 16, in the quick form 64 with T = 64 and K = 4, and
    tests go to 4 T.
    """

    def __init__(self, quick: bool = False):
        super().__init__(quick)
        self.inputs, self.steps, self.pairs = (64, 64, 4) if quick else (512, 128, 16)
        self.outputs = self.inputs
        self.budget = Budget(900 if quick else 4000, 64)

    def make(self, steps: int, pairs: int, rows: int, generator: torch.Generator) -> Batch:
        half, context = self.inputs // 2, 2 * pairs
        slots = (steps - context) // 2
        assert pairs <= min(slots, half - 1), "a slot for every query, a key for every pair"
        keys = 1 + random_distinct(half - 1, pairs, rows, generator)
        values = half + random_distinct(half, pairs, rows, generator)
        inputs = random_integers(0, self.inputs, (rows, steps), generator)
        inputs[:, :context] = torch.stack([keys, values], dim=-1).flatten(1)
        weights = torch.arange(1, slots + 1).pow(POWER - 1)
        queries = context + 2 * random_distinct(slots, pairs, rows, generator, weights)
        inputs.scatter_(1, queries, keys)
        return Batch(inputs, torch.full_like(inputs, IGNORED).scatter_(1, queries, values))

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(self.steps, self.pairs, rows, generator)

    def tests(self) -> list[Test]:
        conditions = {"1x": (1, 1), "4x": (4, 1), "2x pairs": (4, 2)}
        return [
            Test(name, longer * self.steps, 256, partial(self.make, longer * self.steps, more * self.pairs))
            for name, (longer, more) in conditions.items()
        ]
