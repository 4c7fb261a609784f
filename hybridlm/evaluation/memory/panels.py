"""What a panel of curves shows: its axes and the points of each mixer, before anything is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hybridlm.evaluation.memory.summary import Group, Score, columns_of

_FEW = 11
"""Steps between curves that share the room of a place; fewer curves stand as close together."""
_SMALLEST = 1e-6
"""Squared errors below are drawn there."""


@dataclass(frozen=True)
class Panel:
    """places: where across the tests (or tasks) stand, names: what is written there. lengths: places are lengths, on a
    logarithmic axis. floor: 0 where the axis of the scores is linear, else its bottom, which stands for 0. curves:
    mixer -> its score at each place, None where it has no number."""

    title: str
    label: str
    places: list[float]
    names: list[str]
    lengths: bool
    floor: float
    curves: dict[str, list[Score | None]]

    @property
    def limits(self) -> tuple[float, float]:
        """Of the scores. All finite ones are inside; those that are not are drawn at the top."""
        finite = [value for value in self._values() if math.isfinite(value)]
        top = max([1.0 if self.floor else 0.1, *finite])
        if self.floor:
            return self.floor / 1.3, max(top, 10 * self.floor) * 1.6
        return -0.04 * top, 1.04 * top

    @property
    def span(self) -> tuple[float, float]:
        """Of the places, with room for the mixers at the outer ones."""
        if self.lengths:
            return self.places[0] / self._step**0.8, self.places[-1] * self._step**0.8
        return -0.6, len(self.places) - 0.4

    def points(self, at: int, scores: Sequence[Score | None]) -> tuple[list[float], list[float], list[list[float]]]:
        """Where the `at`-th mixer's scores are drawn: across, up, and how far its bars go down and up."""
        offset = (at - (len(self.curves) - 1) / 2) / max(_FEW, len(self.curves) - 1)
        xs, middles, down, up = [], [], [], []
        for place, score in zip(self.places, scores, strict=True):
            if score is None:
                continue
            xs.append(place * self._step**offset if self.lengths else place + 0.7 * offset)
            low, middle, high = (self._inside(value) for value in (score.low, score.middle, score.high))
            middles.append(middle)
            down.append(middle - low)
            up.append(high - middle)
        return xs, middles, [down, up]

    @property
    def _step(self) -> float:
        """The factor in length over which the mixers of one place are spread: less than half of the way to the next."""
        nearest = min(math.log(b / a) for a, b in zip(self.places, self.places[1:], strict=False))
        return math.exp(0.4 * nearest)

    def _inside(self, value: float) -> float:
        top = self.limits[1] / (1.6 if self.floor else 1.04)
        return min(max(value, self.floor), top)

    def _values(self) -> list[float]:
        return [v for scores in self.curves.values() for score in scores if score is not None for v in score.values]


def panels_of(groups: Sequence[Group], counted: bool) -> list[Panel]:
    """The panels of a family's tasks in one form, without failing lengths: one for each task, or one for all where each
    has a single test. counted: error rates are drawn on a logarithmic axis."""
    tests = {}
    for task in dict.fromkeys(group.task for group in groups):
        inside = [group for group in groups if group.task == task]
        names = [name for name in columns_of(inside) if any(_known(group, name) for group in inside)]
        if names:
            tests[task] = names
    mixers = list(dict.fromkeys(group.mixer for group in groups))
    found = {(group.task, group.mixer): group for group in groups}
    if len(tests) > 1 and all(len(names) == 1 for names in tests.values()):
        places = [(task, names[0]) for task, names in tests.items()]
        panel = _panel("", places, [task.replace("_", "\n") for task in tests], mixers, found, counted, lengths=False)
        if panel is not None:
            return [panel]
    panels = []
    for task, names in tests.items():
        at = [max(group.scores[name].length for group in groups if _at(group, task, name)) for name in names]
        for series, part in _series(names, at).items():
            title, places = f"{task}, {series}" if series else task, [(task, name) for name in part]
            panels.append(_panel(title, places, part, mixers, found, counted, lengths=True))
    return [panel for panel in panels if panel is not None]


def _at(group: Group, task: str, test: str) -> bool:
    return group.task == task and test in group.scores


def _series(names: Sequence[str], lengths: Sequence[int]) -> dict[str, list[str]]:
    """The tests that are one curve each. Where several have the same length, those that share the words without a
    digit, as "10x first" and "100x first" do, if at least two such curves come of it; single ones are left out."""
    if len(set(lengths)) < len(lengths):
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(" ".join(word for word in name.split() if not re.search(r"\d", word)), []).append(name)
        curves = {words: part for words, part in found.items() if len(part) > 1}
        if len(curves) > 1:
            return curves
    return {"": list(names)}


def _panel(
    title: str,
    places: list[tuple[str, str]],
    names: list[str],
    mixers: list[str],
    found: dict[tuple[str, str], Group],
    counted: bool,
    lengths: bool,
) -> Panel | None:
    """A panel with a place for each (task, test); None where the tests' scores are of different kinds."""
    curves = {m: [_known(found.get((task, m)), test) for task, test in places] for m in mixers}
    curves = {mixer: scores for mixer, scores in curves.items() if any(scores)}
    scores = [score for line in curves.values() for score in line if score is not None]
    kinds = {score.kind for score in scores}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    at = [max(score.length for score in column if score is not None) for column in zip(*curves.values(), strict=True)]
    lengths = lengths and len(at) > 1 and at == sorted(set(at))
    floor = 0.0
    if kind == "squared error":
        floor = max(_SMALLEST, _power_below(min([v for s in scores for v in s.values if v > 0] or [_SMALLEST])))
    elif counted:
        floor = _power_below(0.5 / max(score.asked for score in scores))
    if lengths:
        names = [f"{length:,}\n{name}" for length, name in zip(at, names, strict=True)]
    label = f"{kind} (0 at the bottom)" if floor else str(kind)
    return Panel(title, label, [float(x) for x in (at if lengths else range(len(at)))], names, lengths, floor, curves)


def _power_below(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _known(group: Group | None, test: str) -> Score | None:
    score = None if group is None else group.scores.get(test)
    return score if score is not None and score.kind not in (None, "failing length") else None
