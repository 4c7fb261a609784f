"""The scan of finite-state heads: what it means, and which implementation runs. Exact at every length.

    logits_t[j, l] = theta_t[j, l] + bias[j, l] + noise_t[j, l]
    tau_t(j) = argmax_l logits_t[j, l]             where a head in state j goes
    s_t = tau_t(s_{t-1}),  h_t = V[s_t]
    (tau_1 then tau_2)[j] = tau_2[tau_1[j]]        what is composed; associative, in integers

theta is (B, T, K, n, n) for K heads of n states, source j before destination l; states (B, T, K) are uint8. Source:
*Length-independent state tracking under a parallel scan* (Liège, 2026). The logits are in fp32 (fp64 for fp64), summed
in this order on every path, and of equal ones the first destination wins: states are the same everywhere, to the bit.

The gradient is a surrogate. With q_t[s] = <g_t, V[s]>, what arrives for "the state at t is s", and j = s_{t-1}:

    lambda_t[s] = q_t[s] + lambda_{t+1}[tau_{t+1}(s)]          what it would be worth to be in s, all s at once
    dL/d theta_t[j, :] = p * (lambda_t - <p, lambda_t>) / nu,  p = softmax(logits_t[j, :] / nu);    other rows 0

A masked position holds (the identity, no gradient of theta). At a document start the state before is 0 again, so all
sources go where 0 goes, and lambda_t does not reach back. A NaN among the logits that were read makes what is emitted
there NaN, there alone: an integer state cannot carry it on.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .indexmaps_hybridlm import at, index_backward, index_forward, logits_of, maps_of, one_hot, starts_of
from .indexsplit_hybridlm import index_split
from .seam_hybridlm import index
from .sequence_hybridlm import sharing
from .stepwise_hybridlm import exporting, stepwise
from .twolevel_hybridlm import recurrence_dtype

MOST_STATES = 256
"""States of a head that uint8 can tell apart."""


def index_scan(
    theta: Tensor,
    values: Tensor,
    initial_state: Tensor,
    *,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """theta (B, T, K, n, n) floating point, [j, l] from source j to destination l; values, V, (K, n, d); initial_state
    (B, K) uint8; bias (K, n, n); noise as theta, which gets no gradient; reset, mask (B, T) bool; path as of the scans
    of `scan_hybridlm`.

    Returns h (B, T, K, d) in the dtype of the recurrence, fp32 or fp64 as theta is, with the surrogate gradient, and
    the states (B, T, K) uint8.
    """
    _check(theta, values, initial_state, bias, noise)
    dtype = recurrence_dtype(theta)
    values, bias, noise = values.to(dtype), _cast(bias, dtype), _cast(noise, dtype)
    if exporting():
        logits = logits_of(theta, bias, noise)
        states = _stepwise(maps_of(logits, starts_of(reset, mask), mask), initial_state)
        return torch.einsum("btkn,knd->btkd", one_hot(states, theta.shape[-1], dtype), values), states
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (theta, bias, values))
    if (ranks := sharing()) is not None:
        if mask is not None:
            raise ValueError("mask: a sequence that is split over processes has no padding. Pack documents instead.")
        return index_split(ranks, path, (theta, bias, noise, values, initial_state, float(temperature), reset, keep))
    inputs = theta, bias, noise, values, initial_state, float(temperature), reset, mask, keep
    if index is not None:
        return index.scan(*inputs, path)
    if path not in (None, "torch"):
        raise ValueError(
            f"path={path!r}: without the hybridlm package there is only 'torch'. Install it for the others."
        )
    return _IndexScan.apply(*inputs)  # pyright: ignore[reportReturnType]


class _IndexScan(torch.autograd.Function):
    """Keeps p and maps and not theta: of n^2 numbers n, and n bytes."""

    @staticmethod
    def forward(ctx, theta, bias, noise, values, initial_state, temperature, reset, mask, keep):
        inputs = theta, bias, noise, values, initial_state, temperature, reset, mask, keep
        h, states, p, maps = index_forward(*inputs)
        ctx.temperature, ctx.dtype = temperature, theta.dtype
        ctx.save_for_backward(p, maps, states, values, initial_state, reset, mask)
        ctx.mark_non_differentiable(states)
        return h, states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        p, maps, states, values, start, reset, mask = ctx.saved_tensors
        options = ctx.temperature, reset, mask, ctx.dtype
        grad_theta, grad_bias, grad_values = index_backward(grad, p, maps, states, values, start, *options)
        grad_bias = grad_bias if ctx.needs_input_grad[1] else None
        return grad_theta, grad_bias, None, grad_values, None, None, None, None, None


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _stepwise(maps: Tensor, start: Tensor) -> Tensor:
    def step(state, now):
        new = at(now[0], state[0].unsqueeze(-1)).squeeze(-1)
        return (new,), new

    return stepwise(step, (start,), (maps,))[1]


def _check(theta: Tensor, values: Tensor, initial_state: Tensor, bias: Tensor | None, noise: Tensor | None) -> None:
    if theta.ndim != 5 or theta.shape[-1] != theta.shape[-2] or theta.shape[1] < 1 or theta.shape[-1] > MOST_STATES:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}; an index scan takes (B, T, K, n, n) with T >= 1 and "
            f"n <= {MOST_STATES}."
        )
    rows, _, heads, n, _ = theta.shape
    if tuple(initial_state.shape) != (rows, heads) or initial_state.dtype != torch.uint8:
        raise ValueError(
            f"initial_state is {initial_state.dtype} of shape {tuple(initial_state.shape)}; it must be uint8 of shape "
            f"{(rows, heads)}, a state in [0, {n}) of each head."
        )
    for name, x, shape in (("bias", bias, (heads, n, n)), ("noise", noise, tuple(theta.shape))):
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}.")
    if values.ndim != 3 or tuple(values.shape[:2]) != (heads, n):
        raise ValueError(f"values has shape {tuple(values.shape)}; it must be (K, n, d) = ({heads}, {n}, d).")
