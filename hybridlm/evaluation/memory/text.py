"""Persistence within text: a sentence planted in a novel, and asked for a long way down."""

from __future__ import annotations

from functools import cache, partial

import torch

from hybridlm.data.austen import austen_paths
from hybridlm.evaluation.memory.task import IGNORED, Batch, Budget, Task, Test, random_integers

CHOICES = {"name": ("Anne", "Henry"), "colour": ("red", "blue"), "place": ("Bath", "Lyme")}
"""The kinds of planted sentences, and the two words that each chooses from; all six begin with different letters."""
QUESTION = " The chosen {kind} is "
"""What the planted sentence begins with, and what asks for its next byte later on."""
LATEST = 64
"""The sentence is planted before one of the first so many bytes of a stretch."""
GAP = 32
"""In training, fewer bytes of novel than this stand before each question."""
MARGIN = 128
"""How much longer a test's sequence is than what stands between sentence and question: room for the bytes before the
sentence, the sentence and the question."""
ROWS = {"1x": 256, "1k": 128, "10k": 32, "100k": 16}
"""Sequences of a test. The last one is of the standard form only."""


class Text(Task):
    """A sentence such as " The chosen colour is red. " planted near the start of a stretch of a novel; later, its
    beginning comes again, and the first byte of the choice is asked.

    Bytes. The model is trained on Persuasion and tested on Northanger Abbey, with up to 100,000 bytes between the
    sentence and the question. The rows of a long test overlap in the novel. The words to choose from occur in the
    novels too (Anne, Henry and Bath often), as distractors, never behind the question's words. Chance is 1/2: which two
    words there are is known from training.

    In training the question comes again and again, after fewer than 32 bytes each time, and is never answered in the
    inputs: the novel goes on behind it. With one question a sequence, at its end, `bmru` and `lru` learned no more in
    300 steps of the quick form than which two words there are.
    """

    inputs = outputs = 256

    def __init__(self, quick: bool = False):
        super().__init__(quick)
        self.length = 256 if quick else 512
        self.budget = Budget(400 if quick else 3000, 32)

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return _stacked([self._trained(generator) for _ in range(rows)])

    def _trained(self, generator: torch.Generator) -> tuple[bytes, dict[int, int]]:
        question, word = _drawn(generator)
        gaps = random_integers(0, GAP, (self.length // len(question),), generator).tolist()
        return _planted("persuasion", self.length, question, word, gaps, generator)

    def make(self, distance: int, rows: int, generator: torch.Generator) -> Batch:
        """One question, `distance` bytes of Northanger Abbey behind the planted sentence."""
        return _stacked(
            [
                _planted("northanger_abbey", distance + MARGIN, *_drawn(generator), [distance], generator)
                for _ in range(rows)
            ]
        )

    def tests(self) -> list[Test]:
        distances = {"1x": self.length - MARGIN, "1k": 1000, "10k": 10_000, "100k": 100_000}
        if self.quick:
            del distances["100k"]
        return [
            Test(name, distance + MARGIN, ROWS[name], partial(self.make, distance))
            for name, distance in distances.items()
        ]


@cache
def _novels() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in austen_paths()}


def _below(high: int, generator: torch.Generator) -> int:
    return int(random_integers(0, high, (1,), generator))


def _drawn(generator: torch.Generator) -> tuple[bytes, bytes]:
    """A question, and the word that answers it."""
    kind = list(CHOICES)[_below(len(CHOICES), generator)]
    return QUESTION.format(kind=kind).encode(), CHOICES[kind][_below(2, generator)].encode()


def _planted(
    novel: str, length: int, question: bytes, word: bytes, gaps: list[int], generator: torch.Generator
) -> tuple[bytes, dict[int, int]]:
    """A stretch of the novel with the sentence and, behind each gap, the question, as often as it fits. Returns its
    bytes, and the answer at each position where it is asked."""
    text = _novels()[novel]
    start = _below(len(text) - length, generator)
    at = start + _below(LATEST, generator)
    row = text[start:at] + question + word + b". "
    asked = {}
    for gap in gaps:
        if len(row) + gap + len(question) > length:
            break
        row += text[at : at + gap] + question
        at += gap
        asked[len(row) - 1] = word[0]
    return row + text[at : at + length - len(row)], asked


def _stacked(rows: list[tuple[bytes, dict[int, int]]]) -> Batch:
    inputs = torch.stack([torch.frombuffer(bytearray(row), dtype=torch.uint8).long() for row, _ in rows])
    targets = torch.full_like(inputs, IGNORED)
    for target, (_, asked) in zip(targets, rows, strict=True):
        target[list(asked)] = torch.tensor(list(asked.values()))
    return Batch(inputs, targets)
