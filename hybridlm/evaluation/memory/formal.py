"""Formal languages read by finite automata: the state is asked after every symbol.

Trained at length 64 only. Tests follow one long sequence a row and report the failing length: where fewer than nine
sequences in ten are still right at every position. A mixer that tracks the state has none.

Sources: parity and counting modulo a number, Delétang et al., Neural Networks and the Chomsky Hierarchy, 2022
(arXiv 2207.02098); brackets of bounded depth, Suzgun et al., LSTM Networks Can Perform Dynamic Counting, 2019
(arXiv 1906.03648) and Hahn, Theoretical Limitations of Self-Attention in Neural Sequence Models, 2020
(arXiv 1906.06755). There, most ask once, or whether a word belongs; here the state is asked everywhere.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

from hybridlm.evaluation.memory.task import Batch, Budget, Task, Test, random_integers

TRAINED = 64
"""The one length of training."""
LONGEST, LONGEST_QUICK = 32_768, 4_096
"""Lengths up to which the failing length is looked for."""
ROWS = 512
"""Sequences of a test."""


class Automaton(Task):
    """Follow a finite automaton: its states are asked after every letter.

    transitions (S, A): the state that follows each state and letter; it starts in state 0. choices (S, K): the letters
    that may come in each state, drawn uniformly, more often where named twice; None: all A. labels (S,): the class of
    each state; None: the state itself.
    """

    def __init__(
        self, transitions: Tensor, choices: Tensor | None = None, labels: Tensor | None = None, quick: bool = False
    ):
        super().__init__(quick)
        states, letters = transitions.shape
        self.choices = torch.arange(letters).expand(states, letters) if choices is None else choices
        self.labels = torch.arange(states) if labels is None else labels
        self.inputs, self.outputs = letters, int(self.labels.max()) + 1
        self.transitions, self.following = transitions, transitions.gather(1, self.choices)
        self.budget = Budget(2000, 16) if quick else Budget(5000, 64)

    def draw(self, length: int, rows: int, generator: torch.Generator) -> Tensor:
        """Which of its state's choices each letter is, (T, B)."""
        return random_integers(0, self.choices.shape[1], (length, rows), generator)

    def of_length(self, length: int, rows: int, generator: torch.Generator) -> Batch:
        """Sequences of any length. Time is the first axis inside, and a state stands for its row in the flat tables: a
        step is one addition and one look-up."""
        moves = self.draw(length, rows, generator)
        table = self.following.flatten() * self.choices.shape[1]
        state = torch.zeros(rows, dtype=torch.int64)
        for move in moves:
            move += state
            state = table[move]
        letters, labels = self.choices.flatten(), self.labels[self.following.flatten()]
        return Batch(letters[moves.T], labels[moves.T])

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.of_length(TRAINED, rows, generator)

    def tests(self, longest: int | None = None) -> list[Test]:
        """longest: length up to which the failing length is looked for; None: that of the form."""
        longest = longest or (LONGEST_QUICK if self.quick else LONGEST)
        return [
            Test("1x", TRAINED, ROWS, partial(self.of_length, TRAINED)),
            Test("failing length", longest, ROWS, partial(self.of_length, longest), failing=True),
        ]


class Parity(Automaton):
    """Whether the ones so far are odd in number. Each sequence draws how frequent its ones are, uniformly between 5 %
    and 95 %, so that runs are short in some and long in others; with fair bits it is the word problem of Z2."""

    def __init__(self, quick: bool = False):
        super().__init__(torch.tensor([[0, 1], [1, 0]]), quick=quick)

    def draw(self, length: int, rows: int, generator: torch.Generator) -> Tensor:
        frequency = 0.05 + 0.9 * torch.rand(rows, generator=generator)
        return (torch.rand(length, rows, generator=generator) < frequency).long()


def modular_counting(quick: bool = False) -> Automaton:
    """The sum so far modulo 5, of letters 0, 1 and 2, uniform."""
    return Automaton((torch.arange(5)[:, None] + torch.arange(3)) % 5, quick=quick)


def dyck1_depth(quick: bool = False, deepest: int = 8) -> Automaton:
    """The depth of brackets, letters ( and ): a walk on 0 ... 8 that steps up or down alike, and turns at both ends."""
    depth = torch.arange(deepest + 1)
    transitions = torch.stack([depth + 1, depth - 1], 1).clamp(0, deepest)
    choices = torch.tensor([[0, 0], *[[0, 1]] * (deepest - 1), [1, 1]])
    return Automaton(transitions, choices, quick=quick)


def dyck2_depth(quick: bool = False, deepest: int = 4) -> Automaton:
    """The depth d of brackets of two kinds, and the kind k of the innermost open one: 0 where none is open, otherwise
    2 (d - 1) + k + 1.

    Letters are ( [ ) ]. A step opens, either kind alike, or closes the innermost, with equal chance between depth 0
    and 4, where it turns. What an inner pair covers must be remembered, so the automaton's states are all 31 stacks.
    """
    stacks = [stack for depth in range(deepest + 1) for stack in product((0, 1), repeat=depth)]
    index = {stack: state for state, stack in enumerate(stacks)}
    transitions, choices, labels = [], [], []
    for stack in stacks:
        opened = [index.get((*stack, kind), index[stack]) for kind in (0, 1)]
        closed = index[stack[:-1]]
        transitions.append([*opened, closed, closed])
        closing = [2 + stack[-1]] * 2 if stack else [0, 1]
        choices.append([*([0, 1] if len(stack) < deepest else closing), *closing])
        labels.append(2 * (len(stack) - 1) + stack[-1] + 1 if stack else 0)
    return Automaton(torch.tensor(transitions), torch.tensor(choices), torch.tensor(labels), quick=quick)
