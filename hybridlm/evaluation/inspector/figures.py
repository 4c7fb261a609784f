"""What a unit did over a text, as numbers.

write share    of the tokens at which z = 1
plus share     of the tokens after which the state is above 0
changes        tokens at which the sign of the state becomes another one
hold           the tokens from one write to the next, the write's own included: how long a written state lasts, at
               least 1. The one behind the last write is cut by the end of the text, and not among them.
longest        tokens without a write in a row, at the beginning and the end of the text too
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridlm.evaluation.inspector.recording import Recording

ALWAYS = 0.99
"""From this share of writes on a unit is called always-writing: it keeps next to nothing for longer than a token."""


@dataclass(frozen=True)
class UnitFigures:
    """See the module. holds: how many holds of 2^k to 2^(k+1) - 1 tokens, for k = 0, 1, ...; up to the last that is not
    0. median_hold: None where there are none."""

    write_share: float
    plus_share: float
    changes: int
    median_hold: float | None
    longest: int
    holds: list[int]

    @property
    def kind(self) -> str:
        """ "dead": it never writes; "always": see ALWAYS; else "" """
        if self.write_share == 0:
            return "dead"
        return "always" if self.write_share >= ALWAYS else ""


def unit_figures(recording: Recording) -> list[UnitFigures]:
    """The figures of every unit, in the order of the recording."""
    found = []
    for part in recording.parts():
        rows = zip(recording.signs(part), recording.written(part), recording.start[part], strict=True)
        found += [_figures(*row) for row in rows]
    return found


def _figures(signs: np.ndarray, writes: np.ndarray, start: int) -> UnitFigures:
    (places,) = np.nonzero(writes)
    holds = np.diff(places)
    silent = np.diff(places, prepend=-1, append=len(writes)) - 1
    before = np.concatenate([[start], signs[:-1]])
    # frexp, since log2 of a large integer may be rounded to the next power
    histogram = np.bincount(np.frexp(holds)[1] - 1) if len(holds) else np.zeros(0, dtype=int)
    return UnitFigures(
        write_share=float(writes.mean()),
        plus_share=float((signs > 0).mean()),
        changes=int((signs != before).sum()),
        median_hold=float(np.median(holds)) if len(holds) else None,
        longest=int(silent.max()),
        holds=histogram.tolist(),
    )
