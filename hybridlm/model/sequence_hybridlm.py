"""Sequence parallelism: each of several processes has a part of every sequence, and passes its layers' states on.

What a part does to a recurrent state, as seen from outside, is one affine map per channel,

    state behind the part = factor * state before it + own

so the state before a part follows from the (factor, own) of the parts before it, which is all that is exchanged: one
all-gather of two numbers per channel for a layer, whatever the length of the parts. Gradients of states go the other
way, from the last part to the first, with the same factors. The convolution needs the last K-1 inputs of its left
neighbour. Finite-state heads pass on maps between their states (`indexsplit_hybridlm`).

Which processes share the sequences is set on the layers (`split_sequence` of a model); `sharing()` says it inside one,
to the scans and the convolution. Cells do not know of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .planar_hybridlm import times_plus

Planes = tuple[Tensor, ...]
"""(s,) of a real state, (re, im) of a complex one; (B, N) each."""


class SequenceRanks:
    """The processes that share each sequence, in the order of their parts; this one has part number `rank` of `size`.

    group: torch.distributed's, None: all processes. Every process of it makes the same calls in the same order.
    """

    def __init__(self, group: Any = None):
        self.group = group
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self.carried = 0
        """States passed on so far, by which a layer notices a recurrence that does not."""

    def __deepcopy__(self, memo: Any) -> "SequenceRanks":
        """A copied model shares its sequences with the same processes, whose group cannot be copied."""
        return self

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Scans and convolutions inside work on a part of their sequences."""
        token = _SHARING.set(self)
        try:
            yield
        finally:
            _SHARING.reset(token)

    def gather(self, x: Tensor) -> Tensor:
        """x of every process, stacked: (size, ...). No autograd."""
        everyone = x.new_empty(self.size, *x.shape)
        torch.distributed.all_gather(list(everyone.unbind(0)), x.contiguous(), group=self.group)
        return everyone

    def carry(self, factor: Planes, own: Planes, start: Planes, *, back: bool = False) -> Planes:
        """The state that arrives at this part: `start` at the first one, through the maps of the parts before this.

        back: from the last part to this one, as gradients go. Folded one after the other, on every process in the same
        order. No autograd; the scans know their gradients.
        """
        self.carried += 1
        maps = self.gather(torch.stack([*factor, *own]))
        state = start
        for part in range(self.size - 1, self.rank, -1) if back else range(self.rank):
            state = _mapped(maps[part, : len(factor)], state, maps[part, len(factor) :])
        return state

    def window(self, tail: Tensor) -> Tensor:
        """The left neighbour's `tail` (B, K-1, N), with a gradient that goes back to it; zeros in the first part."""
        return _FromLeft.apply(self, tail)  # pyright: ignore[reportReturnType]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over the parts, with a gradient."""
        return _Mean.apply(self, x)  # pyright: ignore[reportReturnType]


_SHARING: ContextVar[SequenceRanks | None] = ContextVar("_SHARING", default=None)


def sharing() -> SequenceRanks | None:
    """Who shares the sequences of the layer that runs; None, as always in a graph that is traced: nobody."""
    return None if torch.compiler.is_compiling() else _SHARING.get()


def _mapped(factor: Tensor, state: Planes, own: Tensor) -> Planes:
    """factor * state + own; factor and own (planes, B, N)."""
    if len(state) == 1:
        return (torch.addcmul(own[0], factor[0], state[0]),)
    return times_plus((factor[0], factor[1]), (state[0], state[1]), (own[0], own[1]))


class _FromLeft(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks: SequenceRanks, tail: Tensor) -> Tensor:
        ctx.ranks = ranks
        everyone = ranks.gather(tail)
        return everyone[ranks.rank - 1].clone() if ranks.rank else torch.zeros_like(tail)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        ranks = ctx.ranks
        everyone = ranks.gather(grad)
        return None, everyone[ranks.rank + 1].clone() if ranks.rank + 1 < ranks.size else torch.zeros_like(grad)


class _Mean(torch.autograd.Function):
    """Its backward is the mean too: each process differentiates a loss of its own, of which all are summed."""

    @staticmethod
    def forward(ctx, ranks: SequenceRanks, x: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(x).mean(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return None, ctx.ranks.gather(grad).mean(0)
