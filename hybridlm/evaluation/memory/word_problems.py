"""Word problems: the product so far of random elements of a group, or of the flip-flop monoid.

By the theorem of Krohn and Rhodes, every finite automaton is a cascade of flip-flops and of simple groups: the cyclic
ones of prime order, and others of which A5 is the smallest. The word problem of A5 is complete for NC1 (Barrington),
out of reach of models of fixed depth in TC0 unless TC0 = NC1; those of S3, S4 and Z_n are not.

Sources: Merrill, Petty & Sabharwal, The Illusion of State in State-Space Models, 2024 (arXiv 2404.08819); Liu et al.,
Transformers Learn Shortcuts to Automata, 2022 (arXiv 2210.10749).
"""

from __future__ import annotations

from itertools import combinations, permutations

import torch
from torch import Tensor

from hybridlm.evaluation.memory.formal import Automaton


def cyclic(order: int) -> Tensor:
    """The table of Z_n: a + b modulo n."""
    element = torch.arange(order)
    return (element[:, None] + element) % order


def symmetric(points: int, even: bool = False) -> Tensor:
    """The table of S_n, or of its even permutations A_n: entry (f, g) is f g, where (f g)(x) = f(g(x)). Elements are
    in lexicographic order, so that 0 is the identity."""
    elements = [p for p in permutations(range(points)) if not (even and _odd(p))]
    index = {element: number for number, element in enumerate(elements)}
    return torch.tensor([[index[tuple(f[x] for x in g)] for g in elements] for f in elements])


def _odd(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in combinations(permutation, 2)) % 2 == 1


def word_problem(table: Tensor, quick: bool = False) -> Automaton:
    """Letters x_1, x_2, ... are elements, uniform; the label of position t is x_1 x_2 ... x_t. A letter multiplies on
    the right, the start is the identity, element 0."""
    return Automaton(table, quick=quick)


def flip_flop_dense(quick: bool = False) -> Automaton:
    """The word problem of the flip-flop: letters hold, reset and set, a third each; the label is 1 where the last
    letter other than hold is set, 0 where it is reset or there was none."""
    return Automaton(torch.tensor([[0, 0, 1], [1, 0, 1]]), quick=quick)
