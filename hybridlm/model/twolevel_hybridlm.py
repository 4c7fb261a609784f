"""The scans in pure PyTorch, real: any device, any float dtype, any length. No autograd: forward and backward of each.

Two levels of about sqrt(T): T is cut into chunks, and the steps inside a chunk are looped over while all chunks advance
side by side. Pass one composes each chunk to one (A, B), a short loop carries the state over the chunks, pass two
replays every chunk from its own start. The backward is the same scan with time reversed.

Inputs and states are (B, T, N) of one dtype; the recurrence and what carries over, (B, N), are in fp32, or fp64 for
fp64. What the operations mean stands in `scan_hybridlm`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .surrogate_hybridlm import surrogate_slope

SHORT = 32  # up to here one plain loop over time beats two passes


def recurrence_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def steps_of(length: int) -> int:
    """Steps of a chunk: about sqrt(T), the nearest divisor of T where one is close, so that nothing has to be
    padded."""
    if length <= SHORT:
        return length
    root = math.isqrt(length - 1) + 1
    return next((steps for steps in range(root, 2 * root) if length % steps == 0), root)


def chunked(x: Tensor, steps: int, fill: float) -> Tensor:
    """(B, T, N) -> (B, chunks, steps, N); the end is filled up."""
    missing = -x.shape[1] % steps
    if missing:
        x = F.pad(x, (0, 0, 0, missing), value=fill)
    return x.unflatten(1, (-1, steps))


def _scan(a: Tensor, b: Tensor, start: Tensor, reverse: bool = False) -> Tensor:
    """s_t = a_t s_{t-1} + b_t from s_0 = start; reversed: s_t = a_t s_{t+1} + b_t from the right end. (B, T, N), no
    autograd."""
    length = b.shape[1]
    if length == 1:
        return torch.addcmul(b, a, start.unsqueeze(1))
    steps = steps_of(length)
    a, b = chunked(a, steps, 1.0), chunked(b, steps, 0.0)
    inner = range(steps - 1, -1, -1) if reverse else range(steps)
    chunks = b.shape[1]
    carried = start.unsqueeze(1)
    if chunks > 1:
        total_a, total_b = a[:, :, inner[0]], b[:, :, inner[0]]
        for i in inner[1:]:
            total_b = torch.addcmul(b[:, :, i], a[:, :, i], total_b)
            total_a = total_a * a[:, :, i]
        carried = torch.empty_like(total_b)
        state = start
        for j in range(chunks - 1, -1, -1) if reverse else range(chunks):
            carried[:, j] = state
            state = torch.addcmul(total_b[:, j], total_a[:, j], state)
    states = torch.empty_like(b)
    state = carried
    for i in inner:
        if torch.compiler.is_compiling():  # which traces no `out` that is a slice
            states[:, :, i] = state = torch.addcmul(b[:, :, i], a[:, :, i], state)
        else:
            state = torch.addcmul(b[:, :, i], a[:, :, i], state, out=states[:, :, i])
    return states.flatten(1, 2)[:, :length]


def _scan_back(a: Tensor, grad: Tensor, grad_final: Tensor) -> Tensor:
    """lambda_t = g_t + a_{t+1} lambda_{t+1}, where the gradient of the final state enters at the right end."""
    return _scan(F.pad(a[:, 1:], (0, 0, 0, 1), value=1.0), grad, grad_final, reverse=True)


def previous_states(states: Tensor, start: Tensor) -> Tensor:
    """s_{t-1} for every t."""
    return torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)


def start_of(initial_state: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    if initial_state is None:
        return torch.zeros(like.shape[0], like.shape[2], dtype=dtype, device=like.device)
    return initial_state.to(dtype)


def _held(decay: Tensor, drive: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where a token is padding: decay 1, drive 0."""
    if mask is None:
        return decay, drive
    padding = ~mask.unsqueeze(2)
    return decay.masked_fill(padding, 1.0), drive.masked_fill(padding, 0.0)


def linear_steps(a: Tensor, b: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """decay and drive of s_t = decay_t s_{t-1} + drive_t, in the dtype of the recurrence, flags worked in."""
    dtype = recurrence_dtype(b)
    decay = a.to(dtype)
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(2), 0.0)
    return _held(decay, b.to(dtype), mask)


def memory_steps(
    c: Tensor, beta: Tensor, epsilon: float, reset: Tensor | None, reset_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same of a memory unit."""
    dtype = recurrence_dtype(c)
    margin = c.to(dtype).abs() - beta.to(dtype)
    write = margin >= 0
    decay = torch.ones_like(margin).masked_fill_(write, epsilon)
    drive = torch.where(c >= 0, 1.0, -1.0).to(dtype) * write
    drive = torch.where(margin.isnan(), margin, drive)
    if reset is not None:
        here = reset.unsqueeze(2)
        if reset_state is not None:
            drive = torch.where(here, torch.addcmul(drive, decay, reset_state.to(dtype)), drive)
        decay = decay.masked_fill(here, 0.0)
    return _held(decay, drive, mask)


def linear_forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States, as b, and the final state."""
    decay, drive = linear_steps(a, b, reset, mask)
    states = _scan(decay, drive, start_of(initial_state, b, drive.dtype))
    return states.to(b.dtype), states[:, -1].clone()


def linear_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    a: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and the initial state."""
    dtype = recurrence_dtype(a)
    decay, _ = linear_steps(a, a, reset, mask)
    lam = _scan_back(decay, grad_states.to(dtype), grad_final.to(dtype))
    grad_start = decay[:, 0] * lam[:, 0]
    if mask is not None:
        lam = lam.masked_fill(~mask.unsqueeze(2), 0.0)
    grad_a = lam * previous_states(states.to(dtype), start_of(initial_state, a, dtype))
    if reset is not None:
        grad_a = grad_a.masked_fill(reset.unsqueeze(2), 0.0)
    return grad_a.to(a.dtype), lam.to(a.dtype), grad_start


def memory_forward(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """States, as c, and the final state."""
    decay, drive = memory_steps(c, beta, epsilon, reset, reset_state, mask)
    states = _scan(decay, drive, start_of(initial_state, c, drive.dtype))
    return states.to(c.dtype), states[:, -1].clone()


def memory_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    c: Tensor,
    beta: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    slope: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of c, beta, the initial state and the state that a reset brings back (None where there is none)."""
    dtype = recurrence_dtype(c)
    drive, signs = c.to(dtype), torch.where(c >= 0, 1.0, -1.0).to(dtype)
    margin = drive.abs() - beta.to(dtype)
    write = margin >= 0
    kept = torch.ones_like(margin).masked_fill_(write, epsilon)
    before, decay = previous_states(states.to(dtype), start_of(initial_state, c, dtype)), kept
    if reset is not None:
        here = reset.unsqueeze(2)
        decay = decay.masked_fill(here, 0.0)
        before = torch.where(here, reset_state.to(dtype) if reset_state is not None else 0.0, before)
    if mask is not None:
        decay = decay.masked_fill(~mask.unsqueeze(2), 1.0)
    lam = _scan_back(decay, grad_states.to(dtype), grad_final.to(dtype))
    grad_start = decay[:, 0] * lam[:, 0]
    if mask is not None:
        lam = lam.masked_fill(~mask.unsqueeze(2), 0.0)
    grad_reset = None
    if reset is not None and reset_state is not None:
        grad_reset = (lam * kept * reset.unsqueeze(2)).sum((0, 1))
    through_write = lam * (signs + (epsilon - 1) * before) * surrogate_slope(margin, slope)
    through_sign = lam * write * (2 * surrogate_slope(drive, slope))
    grad_c = through_sign + through_write * signs
    return grad_c.to(c.dtype), (-through_write).to(c.dtype), grad_start, grad_reset
