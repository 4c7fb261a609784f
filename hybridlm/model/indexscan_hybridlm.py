"""The scan of finite-state heads: maps between states, composed by lookup. Exact at every length.

    tau_t(j) = argmax_l drive_t[j, l]              where a head in state j goes
    s_t = tau_t(s_{t-1})
    (tau_1 then tau_2)[j] = tau_2[tau_1[j]]        what is composed; associative, in integers

Drives are (B, T, K, n, n) for K heads of n states, source j before destination l; maps (B, T, K, n) and states
(B, T, K) are uint8. Two levels of about sqrt(T), as in `twolevel_hybridlm`. Source: *Length-independent state tracking
under a parallel scan* (Liège, 2026).

The gradient is a surrogate. With q_t[s] what arrives for "the state at t is s", and j = s_{t-1}:

    lambda_t[s] = q_t[s] + lambda_{t+1}[tau_{t+1}(s)]          what it would be worth to be in s, all s at once
    dL/d drive_t[j, :] = p * (lambda_t - <p, lambda_t>),  p = softmax(drive_t[j, :]);    other rows 0

A masked position holds (the identity, no gradient). At a document start the state before is 0 again, so all sources go
where 0 goes, and lambda_t does not reach back. A NaN among the drives that were read makes what is emitted there NaN,
there alone: an integer state cannot carry it on.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .stepwise_hybridlm import exporting, stepwise
from .twolevel_hybridlm import chunked, steps_of

MOST_STATES = 256
"""States of a head that uint8 can tell apart."""


def index_scan(
    drive: Tensor, initial_state: Tensor, *, reset: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """drive (B, T, K, n, n) floating point, [j, l] from source j to destination l; initial_state (B, K) uint8; reset,
    mask (B, T) bool.

    Returns the states twice: one-hot (B, T, K, n) in drive's dtype, with the surrogate gradient, and as numbers
    (B, T, K) uint8, without one.
    """
    _check(drive, initial_state)
    starts = reset if reset is None or mask is None else reset & mask
    with torch.no_grad():
        maps = maps_of(drive, starts, mask)
        if exporting():
            states = _stepwise(maps, initial_state)
            return _one_hot(states, drive), states
        states = follow(maps, initial_state)
        before = torch.cat([initial_state.unsqueeze(1), states[:, :-1]], 1)
        if starts is not None:
            before = before.masked_fill(starts.unsqueeze(2), 0)
    if torch.is_grad_enabled() and drive.requires_grad:
        one_hot: Tensor = _Surrogate.apply(drive, maps, states, before, starts, mask)  # pyright: ignore[reportAssignmentType]
        return one_hot, states
    return _poisoned(_one_hot(states, drive), _read(drive, before), mask), states


def maps_of(drive: Tensor, starts: Tensor | None, mask: Tensor | None) -> Tensor:
    """tau (B, T, K, n) uint8, flags worked in; of equal drives the first destination wins."""
    maps = drive.argmax(-1).to(torch.uint8)
    if starts is not None:
        maps = torch.where(starts[:, :, None, None], maps[..., :1], maps)
    if mask is not None:
        stay = torch.arange(maps.shape[-1], device=maps.device, dtype=torch.uint8)
        maps = torch.where(mask[:, :, None, None], maps, stay)
    return maps


def follow(maps: Tensor, start: Tensor) -> Tensor:
    """s_t = tau_t(s_{t-1}) from s_0 = start (B, K) uint8; maps (B, T, K, n)."""
    length = maps.shape[1]
    steps = steps_of(length)
    parts = _parts(maps, steps)
    state = start.unsqueeze(1)
    if parts.shape[1] > 1:
        composed = parts[:, :, 0]
        for i in range(1, steps):
            composed = _at(parts[:, :, i], composed)
        state, carried = start, []
        for j in range(parts.shape[1]):
            carried.append(state)
            state = _at(composed[:, j], state.unsqueeze(-1)).squeeze(-1)
        state = torch.stack(carried, 1)
    states = []
    for i in range(steps):
        state = _at(parts[:, :, i], state.unsqueeze(-1)).squeeze(-1)
        states.append(state)
    return torch.stack(states, 2).flatten(1, 2)[:, :length]


def worths(maps: Tensor, grad: Tensor, starts: Tensor | None) -> Tensor:
    """lambda_t[s] = q_t[s] + lambda_{t+1}[tau_{t+1}(s)] for all s, nothing behind the end or a document's; grad, q
    (B, T, K, n)."""
    length = maps.shape[1]
    if length == 1:
        return grad
    steps = steps_of(length)
    to, grad = _parts(F.pad(maps[:, 1:], (0, 0, 0, 0, 0, 1)), steps), _parts(grad, steps)
    keep = None
    if starts is not None:
        keep = chunked((~F.pad(starts[:, 1:], (0, 1))).to(grad.dtype).unsqueeze(2), steps, 0.0).unsqueeze(-1)

    def back(i: int, later: Tensor) -> Tensor:
        reached = later.gather(-1, to[:, :, i].long())
        return grad[:, :, i] + (reached if keep is None else reached * keep[:, :, i])

    inner = range(steps - 1, -1, -1)
    chunks = to.shape[1]
    worth = torch.zeros_like(grad[:, :, 0])
    if chunks > 1:
        total, composed = worth, torch.arange(maps.shape[-1], device=maps.device).expand(to[:, :, 0].shape)
        for i in inner:
            total, composed = back(i, total), composed.gather(-1, to[:, :, i].long())
        through = None if keep is None else keep.prod(2)
        carried, later = [], worth[:, 0]
        for j in range(chunks - 1, -1, -1):
            carried.append(later)
            reached = later.gather(-1, composed[:, j])
            later = total[:, j] + (reached if through is None else reached * through[:, j])
        worth = torch.stack(carried[::-1], 1)
    found = []
    for i in inner:
        worth = back(i, worth)
        found.append(worth)
    return torch.stack(found[::-1], 2).flatten(1, 2)[:, :length]


class _Surrogate(torch.autograd.Function):
    """One-hot states whose gradient is the surrogate's. Keeps p and not the drives: n numbers of n^2."""

    @staticmethod
    def forward(ctx, drive, maps, states, before, starts, mask):
        read = _read(drive, before)
        ctx.save_for_backward(torch.softmax(read, -1), maps, before, starts, mask)
        return _poisoned(_one_hot(states, drive), read, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        p, maps, before, starts, mask = ctx.saved_tensors
        worth = worths(maps, grad, starts)
        row = p * (worth - (p * worth).sum(-1, keepdim=True))
        if mask is not None:
            row = row.masked_fill(~mask[:, :, None, None], 0.0)
        n = row.shape[-1]
        grad_drive = row.new_zeros(*row.shape, n).scatter_(-2, _rows(before, n), row.unsqueeze(-2))
        return grad_drive, None, None, None, None, None


def _parts(x: Tensor, steps: int) -> Tensor:
    """(B, T, K, n) -> (B, chunks, steps, K, n); the end is filled with zeros."""
    return chunked(x.flatten(2), steps, 0).unflatten(-1, x.shape[2:])


def _at(maps: Tensor, states: Tensor) -> Tensor:
    """maps[..., states[..., i]], uint8."""
    return maps.gather(-1, states.long())


def _rows(states: Tensor, n: int) -> Tensor:
    """(B, T, K) as an index of rows, (B, T, K, 1, n)."""
    return states.long()[..., None, None].expand(*states.shape, 1, n)


def _read(drive: Tensor, before: Tensor) -> Tensor:
    """The drives that decided: rows j = s_{t-1}, (B, T, K, n)."""
    return drive.gather(-2, _rows(before, drive.shape[-1])).squeeze(-2)


def _one_hot(states: Tensor, like: Tensor) -> Tensor:
    return (states.unsqueeze(-1) == torch.arange(like.shape[-1], device=states.device)).to(like.dtype)


def _poisoned(one_hot: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
    nan = read.isnan().any(-1, keepdim=True)
    if mask is not None:
        nan = nan & mask[:, :, None, None]
    return one_hot.masked_fill(nan, torch.nan)


def _stepwise(maps: Tensor, start: Tensor) -> Tensor:
    def step(state, now):
        new = _at(now[0], state[0].unsqueeze(-1)).squeeze(-1)
        return (new,), new

    return stepwise(step, (start,), (maps,))[1]


def _check(drive: Tensor, initial_state: Tensor) -> None:
    if drive.ndim != 5 or drive.shape[-1] != drive.shape[-2] or drive.shape[1] < 1 or drive.shape[-1] > MOST_STATES:
        raise ValueError(
            f"drive has shape {tuple(drive.shape)}; an index scan takes (B, T, K, n, n) with T >= 1 and "
            f"n <= {MOST_STATES}."
        )
    wanted = drive.shape[0], drive.shape[2]
    if tuple(initial_state.shape) != wanted or initial_state.dtype != torch.uint8:
        raise ValueError(
            f"initial_state is {initial_state.dtype} of shape {tuple(initial_state.shape)}; it must be uint8 of shape "
            f"{wanted}, a state in [0, {drive.shape[-1]}) of each head."
        )
