"""The scans behind every recurrent cell, in pure PyTorch: any device, any float dtype, any length.

    linear_scan   s_t = a_t * s_{t-1} + b_t              a, b given per step, real
    lru_scan      s_t = lambda * s_{t-1} + b_t           lambda constant over time, complex (planar re, im)
    memory_scan   the memory recurrent unit, from its candidate c and threshold beta

All three share one contract. Layout (B, T, N) with T >= 1. `initial_state` (B, N), zeros if None. `mask` (B, T) bool,
False where a token is padding: the state holds and the output there is the held state. `reset` (B, T) bool, True at
the first token of a document: the state before it is the reset state again. A masked position never resets. The
recurrence runs in fp32 (fp64 for fp64 inputs); the states come back in the input's dtype, the final state (B, N) in
the dtype of the recurrence, so that carrying it on loses nothing. Gradients arrive on both and leave for every float
input, once (no double backward). A NaN stays in its own row and channel, from there to the end of the row, also
behind a reset (0 times NaN).

Two levels of about sqrt(T): T is cut into chunks, and the steps inside a chunk are looped over while all chunks advance
side by side. Pass one composes each chunk to one (A, B), a short loop carries the state over the chunks, pass two
replays every chunk from its own start. The backward is the same scan with time reversed.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .stepwise_hybridlm import exporting, linear_stepwise, planar_stepwise
from .surrogate_hybridlm import surrogate_slope

Planar = tuple[Tensor, Tensor]
SHORT = 32  # up to here one plain loop over time beats two passes


def linear_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s_t = a_t * s_{t-1} + b_t, elementwise and real; a reset puts s_{t-1} = 0.

    a, b: (B, T, N). Returns states (B, T, N) in b's dtype and the final state (B, N).
    """
    _check("b", b, reset, mask, a=a)
    _check_state("initial_state", initial_state, (b.shape[0], b.shape[2]))
    if exporting():
        decay, drive = _linear_steps(a, b, reset, mask)
        return linear_stepwise(decay, drive, _start(initial_state, b, drive.dtype), b.dtype)
    return _LinearScan.apply(a, b, initial_state, reset, mask)  # pyright: ignore[reportReturnType]


def lru_scan(
    decay: Planar,
    b: Planar,
    initial_state: Planar | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Planar, Planar]:
    """s_t = lambda * s_{t-1} + b_t, complex with constant lambda; a reset puts s_{t-1} = 0 (arXiv 2303.06349, eq. 1).

    decay: (re, im) of lambda, each (N,). b: (re, im), each (B, T, N). Returns the states and the final state, both
    planar.
    """
    _check("b", b[0], reset, mask, b_im=b[1])
    rows, width = b[0].shape[0], b[0].shape[2]
    for name, part in zip(("decay (real)", "decay (imaginary)"), decay, strict=True):
        _check_state(name, part, (width,))
    s_re, s_im = initial_state if initial_state is not None else (None, None)
    _check_state("initial_state (real)", s_re, (rows, width))
    _check_state("initial_state (imaginary)", s_im, (rows, width))
    if exporting():
        dtype = _recurrence_dtype(b[0])
        lam, drive = (decay[0].to(dtype), decay[1].to(dtype)), (b[0].to(dtype), b[1].to(dtype))
        start = _start(s_re, b[0], dtype), _start(s_im, b[0], dtype)
        return planar_stepwise(lam, drive, start, reset, mask, b[0].dtype)  # pyright: ignore[reportReturnType]
    out = _LruScan.apply(*decay, *b, s_re, s_im, reset, mask)
    return (out[0], out[1]), (out[2], out[3])  # pyright: ignore[reportReturnType, reportIndexIssue, reportOptionalSubscript]


def memory_scan(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    slope: float = 1.0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The memory recurrent unit (arXiv 2601.09495; cumulative form arXiv 2605.11855), elementwise:

        z_t = H(|c_t| - beta_t);   s_t = z_t (S(c_t) + epsilon s_{t-1}) + (1 - z_t) s_{t-1}

    c, beta: (B, T, N), beta >= 0. epsilon 0: bistable, states +-1; 1: cumulative, a counter. `slope` is k of the
    surrogate gradients. `reset_state` (N,) is s_0 of a document (zeros if None). At epsilon = 0 every value inside is
    0 or +-1, so any chunking gives the same bits. A NaN in c or beta becomes a NaN state in its own channel, from
    there on.
    """
    _check("c", c, reset, mask, beta=beta)
    _check_state("initial_state", initial_state, (c.shape[0], c.shape[2]))
    _check_state("reset_state", reset_state, (c.shape[2],))
    if exporting():
        decay, drive = _memory_steps(c, beta, epsilon, reset, reset_state, mask)
        return linear_stepwise(decay, drive, _start(initial_state, c, drive.dtype), c.dtype)
    return _MemoryScan.apply(c, beta, initial_state, epsilon, slope, reset, reset_state, mask)  # pyright: ignore[reportReturnType]


def _check(name: str, x: Tensor, reset: Tensor | None, mask: Tensor | None, **same: Tensor) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; a scan takes (B, T, N) with T >= 1.")
    for other, tensor in same.items():
        if tensor.shape != x.shape:
            raise ValueError(
                f"{other} has shape {tuple(tensor.shape)}; it must have the shape of {name}, {tuple(x.shape)}."
            )
    for other, flags in (("reset", reset), ("mask", mask)):
        if flags is not None and (flags.shape != x.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"{other} is {flags.dtype} of shape {tuple(flags.shape)}; it must be bool of shape "
                f"{tuple(x.shape[:2])}."
            )


def _check_state(name: str, state: Tensor | None, shape: tuple[int, ...]) -> None:
    if state is not None and tuple(state.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(state.shape)}; it must be {shape}.")


def _recurrence_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _steps(length: int) -> int:
    """Steps of a chunk: about sqrt(T), the nearest divisor of T where one is close, so that nothing has to be
    padded."""
    if length <= SHORT:
        return length
    root = math.isqrt(length - 1) + 1
    return next((steps for steps in range(root, 2 * root) if length % steps == 0), root)


def _chunked(x: Tensor, steps: int, fill: float) -> Tensor:
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
    steps = _steps(length)
    a, b = _chunked(a, steps, 1.0), _chunked(b, steps, 0.0)
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


def _previous(states: Tensor, start: Tensor) -> Tensor:
    """s_{t-1} for every t."""
    return torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)


def _start(initial_state: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    if initial_state is None:
        return torch.zeros(like.shape[0], like.shape[2], dtype=dtype, device=like.device)
    return initial_state.to(dtype)


def _cast(grad: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else grad.to(like.dtype)


def _held(decay: Tensor, drive: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where a token is padding: decay 1, drive 0."""
    if mask is None:
        return decay, drive
    padding = ~mask.unsqueeze(2)
    return decay.masked_fill(padding, 1.0), drive.masked_fill(padding, 0.0)


def _linear_steps(a: Tensor, b: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """decay and drive of s_t = decay_t s_{t-1} + drive_t, in the dtype of the recurrence, flags worked in."""
    dtype = _recurrence_dtype(b)
    decay = a.to(dtype)
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(2), 0.0)
    return _held(decay, b.to(dtype), mask)


def _memory_steps(
    c: Tensor, beta: Tensor, epsilon: float, reset: Tensor | None, reset_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same of a memory unit."""
    dtype = _recurrence_dtype(c)
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


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, initial_state, reset, mask):
        decay, drive = _linear_steps(a, b, reset, mask)
        start = _start(initial_state, b, drive.dtype)
        states = _scan(decay, drive, start)
        ctx.save_for_backward(a, b, initial_state, start, decay, states, reset, mask)
        return states.to(b.dtype), states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        a, b, initial_state, start, decay, states, reset, mask = ctx.saved_tensors
        lam = _scan_back(decay, grad_states.to(decay.dtype), grad_final)
        grad_start = _cast(decay[:, 0] * lam[:, 0], initial_state)
        if mask is not None:
            lam = lam.masked_fill(~mask.unsqueeze(2), 0.0)
        grad_a = None
        if ctx.needs_input_grad[0]:
            grad_a = lam * _previous(states, start)
            if reset is not None:
                grad_a = grad_a.masked_fill(reset.unsqueeze(2), 0.0)
            grad_a = grad_a.to(a.dtype)
        return grad_a, lam.to(b.dtype), grad_start, None, None


class _MemoryScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, beta, initial_state, epsilon, slope, reset, reset_state, mask):
        decay, drive = _memory_steps(c, beta, epsilon, reset, reset_state, mask)
        start = _start(initial_state, c, drive.dtype)
        states = _scan(decay, drive, start)
        ctx.save_for_backward(c, beta, initial_state, start, states, reset, reset_state, mask)
        ctx.epsilon, ctx.slope = epsilon, slope
        return states.to(c.dtype), states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        c, beta, initial_state, start, states, reset, reset_state, mask = ctx.saved_tensors
        dtype, epsilon, slope = states.dtype, ctx.epsilon, ctx.slope
        drive, signs = c.to(dtype), torch.where(c >= 0, 1.0, -1.0).to(dtype)
        margin = drive.abs() - beta.to(dtype)
        write = margin >= 0
        kept = torch.ones_like(margin).masked_fill_(write, epsilon)
        previous, decay = _previous(states, start), kept
        if reset is not None:
            here = reset.unsqueeze(2)
            decay = decay.masked_fill(here, 0.0)
            previous = torch.where(here, reset_state.to(dtype) if reset_state is not None else 0.0, previous)
        if mask is not None:
            decay = decay.masked_fill(~mask.unsqueeze(2), 1.0)
        lam = _scan_back(decay, grad_states.to(dtype), grad_final)
        grad_start = _cast(decay[:, 0] * lam[:, 0], initial_state)
        if mask is not None:
            lam = lam.masked_fill(~mask.unsqueeze(2), 0.0)
        grad_reset = None
        if reset is not None and reset_state is not None:
            grad_reset = (lam * kept * reset.unsqueeze(2)).sum((0, 1)).to(reset_state.dtype)
        through_write = lam * (signs + (epsilon - 1) * previous) * surrogate_slope(margin, slope)
        through_sign = lam * write * (2 * surrogate_slope(drive, slope))
        grad_c = through_sign + through_write * signs
        return grad_c.to(c.dtype), (-through_write).to(beta.dtype), grad_start, None, None, None, grad_reset, None


def _times(x: Planar, y: Planar) -> Planar:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _times_plus(x: Planar, y: Planar, z: Planar) -> Planar:
    """x y + z, complex."""
    re = torch.addcmul(z[0], x[0], y[0]).addcmul_(x[1], y[1], value=-1)
    return re, torch.addcmul(z[1], x[0], y[1]).addcmul_(x[1], y[0])


class _Decay:
    """lambda as each step sees it: itself, 1 where the token is padding, 0 where a document starts. Chunks side by
    side."""

    def __init__(self, decay: Planar, reset: Tensor | None, mask: Tensor | None, steps: int):
        self.decay, self.steps = decay, steps
        self.plain = reset is None and mask is None
        self.reset = None if reset is None else _chunked(reset.unsqueeze(2), steps, False)
        self.padding = None if mask is None else _chunked(~mask.unsqueeze(2), steps, True)

    def at(self, i: int) -> Planar:
        re, im = self.decay
        if self.reset is not None:
            here = self.reset[:, :, i]
            re, im = torch.where(here, 0.0, re), torch.where(here, 0.0, im)
        if self.padding is not None:
            here = self.padding[:, :, i]
            re, im = torch.where(here, 1.0, re), torch.where(here, 0.0, im)
        return re, im

    def total(self) -> Planar:
        """The product over a chunk: (N,) where lambda is plain, else (B, chunks, N)."""
        product = self.at(0)
        for i in range(1, self.steps):
            product = _times(self.at(i), product)
        return product


def _scan_planar(decay: Planar, b: Planar, start: Planar, reset: Tensor | None, mask: Tensor | None) -> Planar:
    """s_t = lambda_t s_{t-1} + b_t from s_0 = start, planar (B, T, N), no autograd."""
    length = b[0].shape[1]
    steps = _steps(length)
    lam = _Decay(decay, reset, mask, steps)
    re, im = _chunked(b[0], steps, 0.0), _chunked(b[1], steps, 0.0)
    chunks = re.shape[1]
    state: Planar = (start[0].unsqueeze(1), start[1].unsqueeze(1))
    if chunks > 1:
        total_b: Planar = (re[:, :, 0], im[:, :, 0])
        for i in range(1, steps):
            total_b = _times_plus(lam.at(i), total_b, (re[:, :, i], im[:, :, i]))
        # The end of the last chunk may be filled up, and lambda is not 1 there: nothing is carried beyond that chunk.
        total_a = lam.total()
        carried = torch.empty_like(total_b[0]), torch.empty_like(total_b[1])
        here = start
        for j in range(chunks):
            carried[0][:, j], carried[1][:, j] = here
            factor = total_a if lam.plain else (total_a[0][:, j], total_a[1][:, j])
            here = _times_plus(factor, here, (total_b[0][:, j], total_b[1][:, j]))
        state = carried
    out_re, out_im = torch.empty_like(re), torch.empty_like(im)
    for i in range(steps):
        state = _times_plus(lam.at(i), state, (re[:, :, i], im[:, :, i]))
        out_re[:, :, i], out_im[:, :, i] = state
    return out_re.flatten(1, 2)[:, :length], out_im.flatten(1, 2)[:, :length]


class _LruScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask):
        dtype = _recurrence_dtype(b_re)
        drive = b_re.to(dtype), b_im.to(dtype)
        if mask is not None:
            padding = ~mask.unsqueeze(2)
            drive = drive[0].masked_fill(padding, 0.0), drive[1].masked_fill(padding, 0.0)
        start = _start(s_re, b_re, dtype), _start(s_im, b_im, dtype)
        re, im = _scan_planar((lam_re.to(dtype), lam_im.to(dtype)), drive, start, reset, mask)
        ctx.save_for_backward(lam_re, lam_im, b_re, s_re, *start, re, im, reset, mask)
        return re.to(b_re.dtype), im.to(b_im.dtype), re[:, -1].clone(), im[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_re, grad_im, final_re, final_im):
        lam_re, lam_im, b_re, s_re, start_re, start_im, re, im, reset, mask = ctx.saved_tensors
        dtype = re.dtype
        conj = lam_re.to(dtype), -lam_im.to(dtype)
        # Time reversed: a step's factor is that of the step after it, so the flags move by one; at the right end
        # nothing decays.
        later_reset = None if reset is None else F.pad(reset[:, 1:], (0, 1), value=False).flip(1)
        later_mask = mask if mask is not None else torch.ones(re.shape[:2], dtype=torch.bool, device=re.device)
        later_mask = F.pad(later_mask[:, 1:], (0, 1), value=False).flip(1)
        if mask is None:
            # Only the final state's own gradient meets the factor 1: add it to the last step, and lambda stays plain.
            grad_re, grad_im = grad_re.to(dtype).clone(), grad_im.to(dtype).clone()
            grad_re[:, -1] += final_re
            grad_im[:, -1] += final_im
            final_re, final_im, later_mask = torch.zeros_like(final_re), torch.zeros_like(final_im), None
        flipped = grad_re.to(dtype).flip(1), grad_im.to(dtype).flip(1)
        adj_re, adj_im = _scan_planar(conj, flipped, (final_re, final_im), later_reset, later_mask)
        adj_re, adj_im = adj_re.flip(1), adj_im.flip(1)

        first = _Decay(conj, None if reset is None else reset[:, :1], None if mask is None else mask[:, :1], 1).at(0)
        to_start = _times(first, (adj_re[:, :1], adj_im[:, :1]))
        if mask is not None:
            padding = ~mask.unsqueeze(2)
            adj_re, adj_im = adj_re.masked_fill(padding, 0.0), adj_im.masked_fill(padding, 0.0)
        prev_re, prev_im = _previous(re, start_re), _previous(im, start_im)
        if reset is not None:
            here = reset.unsqueeze(2)
            prev_re, prev_im = prev_re.masked_fill(here, 0.0), prev_im.masked_fill(here, 0.0)
        d_re = (adj_re * prev_re + adj_im * prev_im).sum((0, 1)).to(lam_re.dtype)
        d_im = (adj_im * prev_re - adj_re * prev_im).sum((0, 1)).to(lam_im.dtype)
        to_re, to_im = _cast(to_start[0][:, 0], s_re), _cast(to_start[1][:, 0], s_re)
        return d_re, d_im, adj_re.to(b_re.dtype), adj_im.to(b_re.dtype), to_re, to_im, None, None
