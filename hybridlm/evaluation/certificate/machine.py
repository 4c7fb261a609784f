"""Finite automata with an answer on every move (Mealy machines), and the smallest one that answers alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOWHERE = -1
"""In the tables: a letter that never comes in this state."""


@dataclass(frozen=True)
class Machine:
    """following (S, A): the state that follows state and letter; answers (S, A): what is said on the way. Both int64,
    `NOWHERE` where the letter never comes. It starts in state 0."""

    following: np.ndarray
    answers: np.ndarray

    @property
    def states(self) -> int:
        return len(self.following)

    def smallest(self) -> Machine:
        """The machine with the fewest states that answers alike, numbered in the order in which words reach them.

        States are told apart by their answers first, then by where their letters lead, until nothing changes (Moore,
        Gedanken-experiments on sequential machines, 1956). States that no word reaches are left out.
        """
        kind = _classes(self.answers)
        while True:
            beyond = np.where(self.following == NOWHERE, NOWHERE, kind[self.following])
            finer = _classes(np.column_stack([kind, beyond]))
            if finer.max() == kind.max():
                break
            kind = finer
        _, first = np.unique(kind, return_index=True)
        following = np.where(self.following == NOWHERE, NOWHERE, kind[self.following])[first]
        return Machine(following, self.answers[first])._in_order(int(kind[0]))

    def _in_order(self, start: int) -> Machine:
        order, seen = [start], {start}
        for state in order:
            for after in self.following[state]:
                if after != NOWHERE and after not in seen:
                    seen.add(int(after))
                    order.append(int(after))
        number = np.empty(self.states, dtype=np.int64)
        number[order] = np.arange(len(order))
        following = self.following[order]
        return Machine(np.where(following == NOWHERE, NOWHERE, number[following]), self.answers[order])

    def same_as(self, other: Machine) -> bool:
        """Whether two smallest machines are one."""
        return np.array_equal(self.following, other.following) and np.array_equal(self.answers, other.answers)

    def table(self) -> str:
        """A line for each state, a column for each letter: the state that follows, and the answer behind a slash."""
        cells = [
            ["" if after == NOWHERE else f"{after}/{answer}" for after, answer in zip(*row, strict=True)]
            for row in zip(self.following, self.answers, strict=True)
        ]
        head = [f"letter {letter}" if letter == 0 else str(letter) for letter in range(self.following.shape[1])]
        widths = [max(len(title), *(len(row[i]) for row in cells)) for i, title in enumerate(head)]
        names = [f"state {state}" for state in range(self.states)]
        left = len(names[-1])
        lines = [" " * left + "".join(f"  {title:>{width}}" for title, width in zip(head, widths, strict=True))]
        for name, row in zip(names, cells, strict=True):
            lines.append(f"{name:<{left}}" + "".join(f"  {c:>{width}}" for c, width in zip(row, widths, strict=True)))
        return "\n".join(lines)


def _classes(rows: np.ndarray) -> np.ndarray:
    """(S,): a number for each different row."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
