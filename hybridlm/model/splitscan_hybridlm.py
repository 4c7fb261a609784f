"""The scans where a sequence is split over processes: each scans its part, from the state that the parts before leave.

    forward     scan from 0: what this part adds (own); with its factor, `carry`: the state before it; scan from there
    backward    scan back from no gradient: what this part hands back; `carry`: the gradient that arrives from the parts
                behind it; scan back from there, which gives all gradients

Both are twice the scan of one process, on the same kernels, and keep for the backward what that keeps: of the first of
two scans only its last state is left. The gradients are those of one process by the same formulas, so that surrogates
need no second definition. At epsilon = 0 the maps of a memory unit are exact, and so are its states.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .planar_hybridlm import Planar, lru_backward, lru_forward, times
from .seam_hybridlm import registered
from .sequence_hybridlm import SequenceRanks
from .twolevel_hybridlm import (
    linear_backward,
    linear_forward,
    memory_backward,
    memory_forward,
    recurrence_dtype,
    start_of,
)

_HERE = {
    "linear_forward": linear_forward,
    "linear_backward": linear_backward,
    "lru_forward": lru_forward,
    "lru_backward": lru_backward,
    "memory_forward": memory_forward,
    "memory_backward": memory_backward,
}


def linear_split(
    ranks: SequenceRanks, a: Tensor, b: Tensor, start: Tensor | None, reset: Tensor | None, path: str | None
) -> tuple[Tensor, Tensor]:
    """`linear_scan` of this process's part; a and b of one dtype. start (B, N): s_0 of the whole sequence, the same on
    all processes, each of which gets its share of the gradient."""
    start = start_of(start, b, recurrence_dtype(b))
    return _LinearSplit.apply(ranks, path, a, b, start, reset)  # pyright: ignore[reportReturnType]


def lru_split(
    ranks: SequenceRanks, decay: Planar, b: Planar, start: Planar | None, reset: Tensor | None, path: str | None
) -> tuple[Tensor, ...]:
    """`lru_scan` of this process's part, planes one after the other; b of one dtype."""
    dtype = recurrence_dtype(b[0])
    re, im = (None, None) if start is None else start
    planes = *decay, *b, start_of(re, b[0], dtype), start_of(im, b[0], dtype)
    return _LruSplit.apply(ranks, path, *planes, reset)  # pyright: ignore[reportReturnType]


def memory_split(
    ranks: SequenceRanks,
    c: Tensor,
    beta: Tensor,
    start: Tensor | None,
    epsilon: float,
    slope: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    path: str | None,
) -> tuple[Tensor, Tensor]:
    """`memory_scan` of this process's part; c and beta of one dtype."""
    start = start_of(start, c, recurrence_dtype(c))
    return _MemorySplit.apply(ranks, path, c, beta, start, epsilon, slope, reset, reset_state)  # pyright: ignore[reportReturnType]


def _kernel(name: str, x: Tensor, path: str | None) -> Callable[..., Any]:
    return _HERE[name] if registered is None else registered.kernel(name, x, path)


def _blocked(factor: Tensor, reset: Tensor | None) -> Tensor:
    """factor (B, N), 0 in rows where a document begins: nothing passes it."""
    return factor if reset is None else factor.masked_fill(reset.any(1, keepdim=True), 0.0)


def _power(x: Planar, exponent: int) -> Planar:
    """x^exponent, complex: by squares."""
    result = torch.ones_like(x[0]), torch.zeros_like(x[0])
    while exponent:
        result = times(result, x) if exponent % 2 else result
        x, exponent = times(x, x), exponent // 2
    return result


def _of_first(ranks: SequenceRanks, grad: Tensor) -> Tensor:
    """The gradient of s_0: all of it is in the first part. Zeros elsewhere and not None, so that a learned s_0 has a
    gradient on every process that sums it up."""
    return grad if ranks.rank == 0 else torch.zeros_like(grad)


class _LinearSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks, path, a, b, start, reset):
        forward = _kernel("linear_forward", b, path)
        factor = _blocked(a.prod(1, dtype=start.dtype), reset)
        own = forward(a, b, None, reset, None)[1]
        (before,) = ranks.carry((factor,), (own,), (start,))
        states, final = forward(a, b, before, reset, None)
        ctx.save_for_backward(a, states, before, reset, factor)
        ctx.ranks, ctx.path = ranks, path
        return states, final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        *saved, factor = ctx.saved_tensors
        backward = _kernel("linear_backward", saved[0], ctx.path)
        own = backward(grad_states, grad_final, *saved, None)[2]
        (behind,) = ctx.ranks.carry((factor,), (own,), (torch.zeros_like(own),), back=True)
        grad_a, grad_b, grad_start = backward(grad_states, grad_final + behind, *saved, None)
        return None, None, grad_a, grad_b, _of_first(ctx.ranks, grad_start), None


class _LruSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks, path, lam_re, lam_im, b_re, b_im, s_re, s_im, reset):
        forward = _kernel("lru_forward", b_re, path)
        inputs = lam_re, lam_im, b_re, b_im
        # In fp64: the phase of the power is off by that of lambda times the length.
        power = _power((lam_re.double(), lam_im.double()), b_re.shape[1])
        factor = tuple(_blocked(plane.to(s_re.dtype).expand_as(s_re), reset) for plane in power)
        own = forward(*inputs, None, None, reset, None)[2:]
        before = ranks.carry(factor, own, (s_re, s_im))
        out = forward(*inputs, *before, reset, None)
        ctx.save_for_backward(lam_re, lam_im, *out[:2], *before, reset, *factor)
        ctx.ranks, ctx.path = ranks, path
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        *saved, factor_re, factor_im = ctx.saved_tensors
        lam_re, lam_im = saved[:2]
        backward = _kernel("lru_backward", saved[2], ctx.path)
        own = backward(*grads, *saved, None)[4:]
        nothing = tuple(torch.zeros_like(plane) for plane in own)
        behind = ctx.ranks.carry((factor_re, -factor_im), own, nothing, back=True)
        finals = tuple(grad + more for grad, more in zip(grads[2:], behind, strict=True))
        d_re, d_im, to_re, to_im, *starts = backward(*grads[:2], *finals, *saved, None)
        starts = (_of_first(ctx.ranks, grad) for grad in starts)
        return None, None, d_re.to(lam_re.dtype), d_im.to(lam_im.dtype), to_re, to_im, *starts, None


class _MemorySplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks, path, c, beta, start, epsilon, slope, reset, reset_state):
        forward = _kernel("memory_forward", c, path)
        writes = (c.to(start.dtype).abs() - beta.to(start.dtype) >= 0).sum(1)
        factor = _blocked(torch.pow(epsilon, writes.double()).to(start.dtype), reset)
        options = epsilon, reset, reset_state, None
        own = forward(c, beta, None, *options)[1]
        (before,) = ranks.carry((factor,), (own,), (start,))
        states, final = forward(c, beta, before, *options)
        ctx.save_for_backward(c, beta, states, before, reset, reset_state, factor)
        ctx.ranks, ctx.path, ctx.epsilon, ctx.slope = ranks, path, epsilon, slope
        return states, final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        c, beta, states, before, reset, reset_state, factor = ctx.saved_tensors
        backward = _kernel("memory_backward", c, ctx.path)
        saved = c, beta, states, before, ctx.epsilon, ctx.slope, reset, reset_state, None
        own = backward(grad_states, grad_final, *saved)[2]
        (behind,) = ctx.ranks.carry((factor,), (own,), (torch.zeros_like(own),), back=True)
        grad_c, grad_beta, grad_start, fresh = backward(grad_states, grad_final + behind, *saved)
        # Without a reset in this part too: a learned one has a gradient on every process.
        fresh = None if reset_state is None else torch.zeros_like(reset_state) if fresh is None else fresh
        fresh = fresh if fresh is None or reset_state is None else fresh.to(reset_state.dtype)
        return None, None, grad_c, grad_beta, _of_first(ctx.ranks, grad_start), None, None, None, fresh
