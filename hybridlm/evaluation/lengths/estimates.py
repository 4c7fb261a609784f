"""Bits per byte with standard errors, and the context beyond which a model stops improving.

A text is cut into pieces i of b_i bytes, which a model predicts with n_i nats. With r = Σ n_i / (ln 2 Σ b_i),

    standard error of r = sqrt(P / (P - 1) Σ (n_i / ln 2 - r b_i)²) / Σ b_i            (a ratio of sums, P pieces)

How hard the text is moves all lengths alike, so two lengths are compared piece by piece: the same with the differences
of their nats for n_i. Pieces count as independent of one another, which neighbours in one text nearly are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

SURE = 2.0
"""Standard errors that a difference must exceed."""
LEAST = 1e-4
"""Bits per byte that it must exceed too: less is rounding, and of no use to anybody."""


@dataclass(frozen=True)
class Estimate:
    """bits: bits per byte, or a difference of two. error: its standard error."""

    bits: float
    error: float

    @property
    def positive(self) -> bool:
        return self.bits > max(SURE * self.error, LEAST)

    @property
    def negative(self) -> bool:
        return -self.bits > max(SURE * self.error, LEAST)


def bits_per_byte(nats: Tensor, n_bytes: Tensor) -> Estimate:
    """nats (P,), which may be differences, and n_bytes (P,), P > 1 -> their ratio in bits."""
    bits, size, pieces = nats.double() / math.log(2), n_bytes.double(), len(nats)
    ratio = bits.sum() / size.sum()
    spread = (bits - ratio * size).square().sum() * pieces / (pieces - 1)
    return Estimate(float(ratio), float(spread.sqrt() / size.sum()))


@dataclass(frozen=True)
class Course:
    """How bits per byte go on with the length of the context.

    gains: (shorter, longer) -> how much better the longer one is, for every two lengths. stops_at: the shortest length
    from which no longer one is surely better. worse_from: the shortest one beyond it that is surely worse than it;
    None: there is none.
    """

    lengths: tuple[int, ...]
    gains: dict[tuple[int, int], Estimate]
    stops_at: int
    worse_from: int | None

    @property
    def still_improves(self) -> bool | None:
        """None: there is one length only."""
        return self.stops_at == self.lengths[-1] if len(self.lengths) > 1 else None


def course(lengths: Sequence[int], nats: Sequence[Tensor], n_bytes: Tensor) -> Course:
    """lengths ascending; nats: of each length, (P,), on the same pieces of n_bytes (P,)."""
    gains = {
        (shorter, longer): bits_per_byte(nats[i] - nats[j], n_bytes)
        for i, shorter in enumerate(lengths)
        for j, longer in enumerate(lengths)
        if i < j
    }
    stops = next(
        length for length in lengths if not any(gain.positive for pair, gain in gains.items() if pair[0] == length)
    )
    worse = (longer for (shorter, longer), gain in gains.items() if shorter == stops and gain.negative)
    return Course(tuple(lengths), gains, stops, next(worse, None))


def in_words(course: Course) -> str:
    """The course as a sentence with its figures."""
    *shorter, longest = course.lengths
    if not shorter:
        return f"Only {longest:,} tokens could be measured, which says nothing about more context."
    if course.still_improves:
        gain = course.gains[shorter[-1], longest]
        better = f"{gain.bits:.4f} ± {gain.error:.4f} bits per byte better than {shorter[-1]:,}"
        return f"Still improves at the longest context measured, {longest:,} tokens ({better})."
    beyond = {longer: gain for (length, longer), gain in course.gains.items() if length == course.stops_at}
    best = max(beyond, key=lambda length: beyond[length].bits)
    text = (
        f"Stops improving at {course.stops_at:,} tokens: no longer context is surely better (the best, {best:,}, by "
        f"{beyond[best].bits:.4f} ± {beyond[best].error:.4f} bits per byte)"
    )
    if course.worse_from is not None:
        loss = beyond[course.worse_from]
        text += f"; gets worse from {course.worse_from:,} tokens ({-loss.bits:.4f} ± {loss.error:.4f} worse)"
    return text + "."
