"""All states that a model and the automaton of its task can be in together, over every word, breadth first.

Where that comes to an end, the answers of the model to all words are known. States of the model are told apart by all
that they carry, to `RESOLUTION`: the numbers in them come from the last few letters and from states that latch, so they
recur, up to rounding, when these do. What rounding can change, and what counting states as one passes over, is tried:
every step is taken again with all weights, and the numbers in windows, a little off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridlm.evaluation.certificate.machine import NOWHERE, Machine
from hybridlm.evaluation.certificate.stepping import Stepper
from hybridlm.evaluation.memory.formal import Automaton

RESOLUTION = 2.0**-32
"""Numbers of a state that differ by less may count as the same."""
SHAKE = 2.0**-40
"""Weights are off by up to this share of them, and numbers in a window of the largest there, or of 1."""
LARGEST = 2.0**20
"""Numbers of a state may not be larger."""
LIMIT_WHEN_WRONG = 10_000
"""States or pairs up to which is looked once a wrong answer is known: only for the whole automaton of the model."""
AT_ONCE = 4096
"""About how many steps of the model are taken in one call."""


@dataclass(frozen=True)
class Failure:
    """A word, what the model says after its last letter, and what is right."""

    word: list[int]
    said: int
    right: int


@dataclass(frozen=True)
class Exploration:
    """closed: whether all was seen. longest: all words up to this length were answered. pairs: of a state of the task
    and one of the model. steps: of the model. failure: the shortest there is; None: no wrong answer was seen. margin:
    the smallest lead of an answer over the second best, in logits. spread: the largest difference between two states
    that counted as one, beside the largest number in a window. differing: steps that the model takes otherwise in its
    own dtype. unsure: those that it takes otherwise where numbers are off by `SHAKE`. machine: of the pairs, with the
    model's answers; None unless closed."""

    closed: bool
    longest: int
    states: int
    pairs: int
    steps: int
    failure: Failure | None
    margin: float
    spread: float
    differing: int
    unsure: int
    machine: Machine | None


def explore(
    stepper: Stepper, task: Automaton, limit: int, own: Stepper | None = None, shaken: Sequence[Stepper] = ()
) -> Exploration:
    """Takes words in the order of their length, until no new pair of states comes, or states of the model or pairs are
    more than `limit`, or than `LIMIT_WHEN_WRONG` once an answer was wrong. own: the same model in its own dtype;
    shaken: with weights that are off by `SHAKE`, to either side; which take every step too.

    Raises FloatingPointError where an answer of the model is no number, or a state is not or is too large.
    """
    model, pairs = _Model(stepper, task.inputs, own, shaken), _Pairs(task)
    per_call = max(1, AT_ONCE // task.inputs)
    first = longest = 0
    while first < len(pairs.order):
        end = len(pairs.order)  # of the words of one length
        while first < end:
            if max(len(model.rows), end) > (limit if pairs.failure is None else min(limit, LIMIT_WHEN_WRONG)):
                return _found(model, pairs, longest, closed=False)
            last = min(end, first + per_call)
            model.learn([(state, letter) for i in range(first, last) for state, letter in pairs.moves_from(i)])
            for index in range(first, last):
                pairs.follow(index, model)
            first = last
        longest += 1
    return _found(model, pairs, longest, closed=True)


def true_machine(task: Automaton) -> Machine:
    """The task's own automaton, the smallest."""
    following, answers = task.transitions.numpy(), task.labels[task.transitions].numpy()
    comes = np.zeros(following.shape, dtype=bool)
    np.put_along_axis(comes, task.choices.numpy(), True, axis=1)
    return Machine(np.where(comes, following, NOWHERE), np.where(comes, answers, NOWHERE)).smallest()


class _Model:
    """What is known of the model: its states, numbered as they are met, and its moves so far."""

    def __init__(self, stepper: Stepper, letters: int, own: Stepper | None, shaken: Sequence[Stepper]):
        self.stepper, self.own, self.shaken = stepper, own, shaken
        self.chance = np.random.default_rng(0)
        start = stepper.start()
        self.rows = [start[0]]
        self.numbers = {_keys(start)[0]: 0}
        self.following = np.full((1024, letters), NOWHERE)
        self.answers = np.full((1024, letters), NOWHERE)
        self.steps = self.differing = self.unsure = 0
        self.margin, self.spread = np.inf, 0.0

    def learn(self, moves: list[tuple[int, int]]) -> None:
        """Steps from (state, letter), those that are not known yet."""
        fresh = [move for move in dict.fromkeys(moves) if self.following[move] == NOWHERE]
        if not fresh:
            return
        states, letters = np.array(fresh).T
        before = np.stack([self.rows[state] for state in states])
        rows, logits = self.stepper.step(before, letters)
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("an answer of the model is no number")
        if not (np.abs(rows) <= LARGEST).all():
            raise FloatingPointError(f"a state of the model is no number, or above {LARGEST:,.0f}")
        if logits.shape[1] > 1:
            best = logits.topk(2, dim=1).values
            self.margin = min(self.margin, float((best[:, 0] - best[:, 1]).min()))
        answers = logits.argmax(1).numpy()
        self.following[states, letters] = [self._number(row, key) for row, key in zip(rows, _keys(rows), strict=True)]
        self.answers[states, letters] = answers
        if self.own is not None:
            there, said = self.own.step(before, letters)
            self.differing += int((self._moved(there, rows) | (said.argmax(1).numpy() != answers)).sum())
        if self.shaken:
            self.unsure += int(self._unsure(before, letters, rows, answers).sum())
        self.steps += len(fresh)
        if len(self.rows) > len(self.following):
            more = np.full((2 * len(self.rows) - len(self.following), self.following.shape[1]), NOWHERE)
            self.following, self.answers = np.vstack([self.following, more]), np.vstack([self.answers, more])

    def _moved(self, there: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(B,): where a cell went elsewhere."""
        return np.asarray((np.abs(there - rows) > 0.5)[:, self.stepper.decided].any(1))

    def _unsure(self, before: np.ndarray, letters: np.ndarray, rows: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(B,): where steps that come to `rows` and `answers` come out otherwise with numbers off by `SHAKE`; or where
        a window is off by more than the resolution behind them, so that the next step may."""
        window, found = ~self.stepper.decided, np.zeros(len(rows), dtype=bool)
        off = SHAKE * self._largest(before)[:, None] * self.chance.uniform(-1, 1, before.shape) * window
        for stepper, side in zip(self.shaken, (1, -1), strict=True):
            there, said = stepper.step(before + side * off, letters)
            apart = np.abs(there - rows)[:, window].max(1, initial=0) / self._largest(rows)
            found |= self._moved(there, rows) | ~(apart <= RESOLUTION) | (said.argmax(1).numpy() != answers)
        return found

    def _largest(self, rows: np.ndarray) -> np.ndarray:
        """(B,): the largest number in a window of each row, or 1."""
        return np.abs(rows[:, ~self.stepper.decided]).max(1, initial=1.0)

    def _number(self, row: np.ndarray, key: bytes) -> int:
        number = self.numbers.setdefault(key, len(self.rows))
        if number == len(self.rows):
            self.rows.append(row.copy())  # not a view, which would keep all rows of the step
        else:
            known = self.rows[number]
            self.spread = max(self.spread, float(np.abs(row - known).max() / self._largest(known[None])[0]))
        return number


class _Pairs:
    """The pairs (state of the task, state of the model), in the order of the shortest words that lead there."""

    def __init__(self, task: Automaton):
        self.letters = [sorted(set(row)) for row in task.choices.tolist()]
        self.transitions, self.labels = task.transitions.tolist(), task.labels.tolist()
        self.order = [(0, 0)]
        self.numbers = {(0, 0): 0}
        self.parents = [(NOWHERE, NOWHERE)]
        self.failure: Failure | None = None

    def moves_from(self, index: int) -> list[tuple[int, int]]:
        q, state = self.order[index]
        return [(state, letter) for letter in self.letters[q]]

    def follow(self, index: int, model: _Model) -> None:
        """Takes all letters from a pair, whose moves the model knows."""
        q, state = self.order[index]
        for letter in self.letters[q]:
            after = self.transitions[q][letter], int(model.following[state, letter])
            if after not in self.numbers:
                self.numbers[after] = len(self.order)
                self.order.append(after)
                self.parents.append((index, letter))
            said, right = int(model.answers[state, letter]), self.labels[after[0]]
            if self.failure is None and said != right:
                self.failure = Failure(self._word(index, letter), said, right)

    def _word(self, index: int, letter: int) -> list[int]:
        word = [letter]
        while index:
            index, letter = self.parents[index]
            word.append(letter)
        return word[::-1]

    def machine(self, model: _Model) -> Machine:
        shape = len(self.order), len(self.transitions[0])
        following, answers = np.full(shape, NOWHERE), np.full(shape, NOWHERE)
        for index, (q, state) in enumerate(self.order):
            for letter in self.letters[q]:
                after = self.transitions[q][letter], int(model.following[state, letter])
                following[index, letter] = self.numbers[after]
                answers[index, letter] = model.answers[state, letter]
        return Machine(following, answers)


def _keys(rows: np.ndarray) -> list[bytes]:
    whole = np.rint(rows / RESOLUTION).astype(np.int64)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in whole]


def _found(model: _Model, pairs: _Pairs, longest: int, closed: bool) -> Exploration:
    machine = pairs.machine(model) if closed else None
    return Exploration(
        closed=closed,
        longest=longest,
        states=len(model.rows),
        pairs=len(pairs.order),
        steps=model.steps,
        failure=pairs.failure,
        margin=model.margin,
        spread=model.spread,
        differing=model.differing,
        unsure=model.unsure,
        machine=machine,
    )
