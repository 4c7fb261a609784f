"""Flip-flop language modelling: recall the last bit written, however long ago, past bits that are to be ignored."""

from __future__ import annotations

from functools import partial

import torch

from hybridlm.evaluation.memory.task import IGNORED, Batch, Budget, Task, Test, random_integers

WRITE, READ, IGNORE = 2, 3, 4
"""Symbols of the instructions; bits are the symbols 0 and 1."""
LENGTH = 512
"""Trained at this length."""
TRAINED, SPARSE, DENSE = 0.8, 0.98, 0.1
"""Probability of the instruction to ignore, in training and in the tests away from it."""


class FlipFlop(Task):
    """Flip-flop language modelling, FFL(p): pairs of an instruction and a bit. The first instruction is to write, the
    last to read; between them, ignoring has probability p, writing and reading (1 - p)/2 each. Bits are uniform, but
    the bit after a read is the last one written, and that bit is asked at the read, the symbol before it.

    Trained at p = 0.8 and length 512. Sparse tests, p = 0.98, have writes far apart; dense ones, p = 0.1, many writes.
    A test has 10,000 reads or more; in its quick form, 1,000 or more.

    Source: Liu et al., Exposing Attention Glitches with Flip-Flop Language Modeling, 2023 (arXiv 2306.00946).
    """

    inputs, outputs = 5, 2

    def __init__(self, quick: bool = False):
        super().__init__(quick)
        self.budget = Budget(300 if quick else 2000, 16)

    def make(self, ignoring: float, length: int, rows: int, generator: torch.Generator) -> Batch:
        pairs = length // 2
        kinds = torch.rand(rows, pairs, generator=generator)
        instructions = torch.where(kinds < ignoring, IGNORE, torch.where(kinds < (1 + ignoring) / 2, WRITE, READ))
        instructions[:, 0], instructions[:, -1] = WRITE, READ
        bits = random_integers(0, 2, (rows, pairs), generator)
        reads = instructions == READ
        last_write = torch.where(instructions == WRITE, torch.arange(pairs), 0).cummax(1).values
        bits = torch.where(reads, bits.gather(1, last_write), bits)
        targets = torch.stack([torch.where(reads, bits, IGNORED), torch.full_like(bits, IGNORED)], 2)
        return Batch(torch.stack([instructions, bits], 2).flatten(1), targets.flatten(1))

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(TRAINED, LENGTH, rows, generator)

    def tests(self) -> list[Test]:
        """Symbols per test are the same at all lengths, and fewer where reads are more frequent."""
        lengths = (LENGTH, 8_192) if self.quick else (LENGTH, 8_192, 131_072)
        part = 8 if self.quick else 1
        conditions = [("dense", DENSE, 2**19 // part), ("sparse", SPARSE, 2**21 // part)]
        return [
            Test("1x", LENGTH, 2**18 // LENGTH // part, partial(self.make, TRAINED, LENGTH)),
            *(
                Test(f"{name} {length:,}", length, symbols // length, partial(self.make, ignoring, length))
                for name, ignoring, symbols in conditions
                for length in lengths
            ),
        ]
