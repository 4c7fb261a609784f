"""How well a unit goes along with a feature of the text, and what chance would give.

The statistic is Pearson's correlation r over the tokens, of the sign of the state, or of the write bit, with the
feature. For a feature of yes and no and a state of +-1 it is the phi (Matthews) coefficient. Its sign tells which state
goes with the feature; the size |r| is what is ranked. A constant series has r = 0.

Many units are looked at, and states and features both last for many tokens, so a large |r| may be luck. What luck
gives is measured with the feature shifted circularly against the units, which leaves both as slow as they are: for
SHIFTS evenly spaced shifts the best |r| of all units is taken. `chance` is what 95 % of these do not pass, and `p` the
share of shifts that reach the best unit's |r|, the true place counted among them. The position in the document has
neither: it does not recur, a shifted one is another kind of series, and any unit that changes a few times goes along
with it. That takes several documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridlm.evaluation.inspector.features import FEATURES, Feature, token_features
from hybridlm.evaluation.inspector.recording import Recording
from hybridlm.evaluation.inspector.spans import TokenSpans

SHIFTS = 199
"""With fewer tokens than that there are fewer shifts: one a token."""
BEST = 5
"""Units that are named for each feature."""
_NUMBERS = 1 << 21
"""Numbers of shifted features that are held at once."""


@dataclass(frozen=True)
class Alignment:
    """r (units,): one correlation each. best: the places of the units with the largest |r|, best first. chance, p: see
    the module; None where a shift says nothing, or there is none."""

    feature: Feature
    r: np.ndarray
    best: list[int]
    chance: float | None
    p: float | None


def align(recording: Recording, spans: TokenSpans) -> list[Alignment]:
    """The units of a recording beside every feature that is not constant in the text. The start symbol is left out."""
    values = token_features(spans)
    found = []
    for feature in FEATURES:
        value = values[feature.name]
        if len(value) > 1 and np.ptp(value) > 0:
            found.append(_align(recording, feature, value))
    return found


def _align(recording: Recording, feature: Feature, value: np.ndarray) -> Alignment:
    tokens = len(value)
    shifts = np.unique(np.arange(1, SHIFTS + 1) * tokens // (SHIFTS + 1)) if tokens > 1 else np.zeros(0, dtype=int)
    shifts = shifts[shifts > 0] if feature.recurs else shifts[:0]
    unit_norm = _standardised(value[np.newaxis])[0]
    r, luck = [], np.zeros(len(shifts))
    for part in recording.parts():
        series = recording.written(part) if feature.series == "writes" else recording.signs(part)
        series = _standardised(series[:, 1:].astype(np.float32))
        r.append(series @ unit_norm)
        block = max(1, _NUMBERS // tokens)
        for first in range(0, len(shifts), block):
            moved = np.stack([np.roll(unit_norm, shift) for shift in shifts[first : first + block]])
            best = np.abs(series @ moved.T).max(axis=0)
            luck[first : first + block] = np.maximum(luck[first : first + block], best)
    every = np.concatenate(r).astype(np.float64)
    best = np.argsort(-np.abs(every), kind="stable")[:BEST].tolist()
    if not len(shifts):
        return Alignment(feature, every, best, None, None)
    reached = int((luck >= abs(every[best[0]]) - 1e-6).sum())  # fp32 sums in another order
    chance = float(np.quantile(luck, 0.95, method="higher"))
    return Alignment(feature, every, best, chance, (1 + reached) / (1 + len(shifts)))


def _standardised(series: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, fp32; a constant row becomes 0."""
    wide = series - series.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.sqrt((wide**2).sum(axis=1, keepdims=True))
    wide[(np.ptp(series, axis=1) == 0)] = 0
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)
