"""How fast a run goes in real time, and how long it will go on.

Two rates: that of the steps alone, and that over real time, in which validation, samples and checkpoints count too.
The remaining time is that of the remaining steps, at the recent steps' pace, plus that of the pauses still to come: how
often each combination of them is due is known, and how long one takes is measured. So it is right in the middle between
two validations as well as right behind one, and soon after a run was resumed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import chain, combinations

_STEPS = 50
"""Steps whose mean time stands for the time of a step."""
_SECONDS = 600.0
"""How far the rate over real time looks back."""
_MARKS = 10_000
"""Steps that it looks back over at most."""
_Kinds = frozenset[str]


class Pace:
    """Told of every step as it ends.

    start: steps done before. total: steps of the run. pauses: what happens between steps, name -> every how many steps
    (0: only at the end). now: seconds of a clock that never goes back.
    """

    def __init__(self, start: int, total: int, pauses: Mapping[str, int], now: Callable[[], float] = time.perf_counter):
        self.done, self.total, self._now = start, total, now
        self._periods = {name: every for name, every in pauses.items() if every}
        self._steps: deque[tuple[int, float]] = deque(maxlen=_STEPS)
        self._first_is_in = False
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self._tokens = 0
        self._pauses: dict[_Kinds, tuple[int, float]] = {}

    def step(self, number: int, tokens: int, seconds: float) -> None:
        """Step `number` (from 1) is over: the tokens that it read, over all processes, and its own seconds."""
        ended = self._now()
        if not self._marks:
            self._marks.append((ended - seconds, 0))
            self._first_is_in = True
        else:
            if self._first_is_in and len(self._steps) == 1:
                self._steps.clear()  # it compiled kernels, filled caches, started workers: no later one is like it
            self._first_is_in = False
            kinds, gap = self._due(self.done), max(0.0, ended - seconds - self._marks[-1][0])
            count, sum_ = self._pauses.get(kinds, (0, 0.0))
            self._pauses[kinds] = count + 1, sum_ + gap
        self.done, self._tokens = number, self._tokens + tokens
        self._steps.append((tokens, seconds))
        self._marks.append((ended, self._tokens))
        while len(self._marks) > 2 and self._marks[1][0] <= ended - _SECONDS:
            self._marks.popleft()

    @property
    def step_rate(self) -> float:
        """Tokens per second of the last steps; what happens between them is left out."""
        return sum(tokens for tokens, _ in self._steps) / max(self._step_seconds(), 1e-9)

    @property
    def real_rate(self) -> float:
        """Tokens per second of real time, over the last ten minutes or since the first step of this session began."""
        (before, read_before), (ended, read) = self._marks[0], self._marks[-1]
        return (read - read_before) / max(ended - before, 1e-9)

    def remaining(self) -> float | None:
        """Seconds until the end of the run; None before the second step of a session, as the first is like no other."""
        if self.done >= self.total:
            return 0.0
        if self._first_is_in or not self._steps:
            return None
        left = self.total - self.done
        seconds = left * self._step_seconds() / len(self._steps) + self._pause(frozenset(self._periods))
        return seconds + sum(count * self._pause(kinds) for kinds, count in self._to_come().items())

    def _step_seconds(self) -> float:
        return sum(seconds for _, seconds in self._steps)

    def _due(self, step: int) -> _Kinds:
        return frozenset(name for name, every in self._periods.items() if step % every == 0)

    def _pause(self, kinds: _Kinds) -> float:
        """Mean seconds of a pause with just these kinds; as the sum of its kinds where none has been seen."""
        if kinds in self._pauses:
            count, seconds = self._pauses[kinds]
            return seconds / count
        return sum(self._pause(frozenset({kind})) for kind in kinds) if len(kinds) > 1 else 0.0

    def _to_come(self) -> dict[_Kinds, int]:
        """How many steps, from the one that just ended to the last but one, will be followed by just these kinds."""
        last = self.total - 1
        sets = [frozenset(names) for names in _subsets(list(self._periods))]
        at_least = {}
        for kinds in sets:
            every = math.lcm(*(self._periods[kind] for kind in kinds))
            at_least[kinds] = max(0, last // every - (self.done - 1) // every)
        return {
            kinds: sum((-1) ** (len(more) - len(kinds)) * at_least[more] for more in sets if kinds <= more)
            for kinds in sets
        }


def _subsets(names: list[str]) -> chain[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
