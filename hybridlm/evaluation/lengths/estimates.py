"""Bits per byte with standard errors, and the context beyond which a model stops improving.

A text is cut into pieces i of b_i bytes, which a model predicts with n_i nats. With r = Σ n_i / (ln 2 Σ b_i),

    standard error of r = sqrt(P / (P - 1) Σ (n_i / ln 2 - r b_i)²) / Σ b_i            (a ratio of sums, P pieces)

How hard the text is moves all lengths alike, so two lengths are compared piece by piece: the same with the differences
of their nats for n_i. Pieces count as independent of one another, which neighbours in one text nearly are.

A difference is sure where it exceeds so many standard errors that in 19 of 20 texts none is called sure by chance, all
pairs of lengths together: Student's t with P - 1 degrees of freedom at 1 - 0.05 / (2 pairs), which is 2.0 standard
errors for two lengths and 3.0 for five. With a fixed number, more lengths would find an improvement somewhere more
often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

CHANCE = 0.05
"""Share of texts in which some difference is called sure although there is none."""
LEAST = 1e-4
"""Bits per byte that a sure difference exceeds too: less is rounding, and of no use to anybody."""


@dataclass(frozen=True)
class Estimate:
    """bits: bits per byte, or a difference of two. error: its standard error."""

    bits: float
    error: float

    def exceeds(self, standard_errors: float) -> bool:
        """Whether it is surely above 0."""
        return self.bits > max(standard_errors * self.error, LEAST)

    def __neg__(self) -> Estimate:
        return Estimate(-self.bits, self.error)


def bits_per_byte(nats: Tensor, n_bytes: Tensor) -> Estimate:
    """nats (P,), which may be differences, and n_bytes (P,), P > 1 -> their ratio in bits."""
    bits, size, pieces = nats.double() / math.log(2), n_bytes.double(), len(nats)
    ratio = bits.sum() / size.sum()
    spread = (bits - ratio * size).square().sum() * pieces / (pieces - 1)
    return Estimate(float(ratio), float(spread.sqrt() / size.sum()))


def standard_errors(lengths: int, pieces: int) -> float:
    """How many of them make a difference sure, where every two of so many lengths are compared."""
    pairs = max(1, lengths * (lengths - 1) // 2)
    z = NormalDist().inv_cdf(1 - CHANCE / (2 * pairs))
    free = pieces - 1
    # Student's t from the normal quantile: Abramowitz and Stegun 26.7.5, two terms.
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


@dataclass(frozen=True)
class Course:
    """How bits per byte go on with the length of the context.

    gains: (shorter, longer) -> how much better the longer one is, for every two lengths. stops_at: the shortest length
    from which no longer one is surely better; None: there is no length. worse_from: the shortest one beyond it that is
    surely worse than it; None: there is none. needed: the standard errors that make a difference sure.
    """

    lengths: tuple[int, ...]
    gains: dict[tuple[int, int], Estimate]
    stops_at: int | None
    worse_from: int | None
    needed: float

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
    needed = standard_errors(len(lengths), len(n_bytes))
    improved = {shorter for (shorter, _), gain in gains.items() if gain.exceeds(needed)}
    stops = next((length for length in lengths if length not in improved), None)
    worse = (longer for (shorter, longer), gain in gains.items() if shorter == stops and (-gain).exceeds(needed))
    return Course(tuple(lengths), gains, stops, next(worse, None), needed)


def in_words(course: Course) -> str:
    """The course as a sentence with its figures."""
    if course.stops_at is None:
        return "None of the lengths could be measured."
    *shorter, longest = course.lengths
    if not shorter:
        return f"Only {longest:,} tokens could be measured, which says nothing about more context."
    if course.still_improves:
        than = f"{_away(course.gains[shorter[-1], longest])} than {shorter[-1]:,}"
        return f"Still improves at the longest context measured, {longest:,} tokens ({than})."
    beyond = {longer: gain for (length, longer), gain in course.gains.items() if length == course.stops_at}
    best = max(beyond, key=lambda length: beyond[length].bits)
    gain = beyond[best]
    text = (
        f"Stops improving at {course.stops_at:,} tokens: no longer context is better by the {course.needed:.1f} "
        f"standard errors that make it sure (the nearest, {best:,}, is {_away(gain)})"
    )
    if course.worse_from is not None:
        text += f"; gets worse from {course.worse_from:,} tokens ({_away(beyond[course.worse_from])})"
    return text + "."


def _away(gain: Estimate) -> str:
    return f"{abs(gain.bits):.5f} ± {gain.error:.5f} bits per byte {'worse' if gain.bits < 0 else 'better'}"
