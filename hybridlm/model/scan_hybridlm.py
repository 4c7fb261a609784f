"""The scans behind every recurrent cell: what they mean, and which implementation runs.

    linear_scan   s_t = a_t * s_{t-1} + b_t              a, b given per step, real
    lru_scan      s_t = lambda * s_{t-1} + b_t           lambda constant over time, complex (planar re, im)
    memory_scan   the memory recurrent unit, from its candidate c and threshold beta

All three share one contract. Layout (B, T, N) with T >= 1, dense, all on one device, in float64, float32, float16 or
bfloat16, also mixed: anything else is a ValueError. `initial_state` (B, N), zeros if None. `mask` (B, T) bool, False
where a token is padding: the state holds and the output there is the held state. `reset` (B, T) bool, True at the first
token of a document: the state before it is the reset state again. A masked position never resets. The recurrence
runs in fp32 (fp64 for fp64 inputs); the states come back in the input's dtype, the final state (B, N) in the dtype of
the recurrence, so that carrying it on loses nothing. Gradients arrive on both and leave for every input, once (no
double backward). A NaN stays in its own row and channel, from there to the end of the row; pure PyTorch carries it
behind a reset too (0 times NaN).

`path` says which implementation runs: "torch" (pure PyTorch, always there), and where the hybridlm package is installed
"cpu", "triton" and "reference". None, as the model has it, leaves the choice to `hybridlm.ops`. A checkpoint that runs
without the package takes "torch".

In a layer whose sequences are split over processes (`sequence_hybridlm`) a scan is given this process's part of them
and passes the state on to the next: `initial_state` is then that of the whole sequence, and there is no `mask`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .planar_hybridlm import Planar, lru_backward, lru_forward
from .seam_hybridlm import registered
from .sequence_hybridlm import sharing
from .splitscan_hybridlm import linear_split, lru_split, memory_split
from .stepwise_hybridlm import exporting, linear_stepwise, planar_stepwise
from .twolevel_hybridlm import (
    linear_backward,
    linear_forward,
    linear_steps,
    memory_backward,
    memory_forward,
    memory_steps,
    recurrence_dtype,
    start_of,
)

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def linear_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """s_t = a_t * s_{t-1} + b_t, elementwise and real; a reset puts s_{t-1} = 0.

    a, b: (B, T, N). Returns states (B, T, N) in b's dtype and the final state (B, N).
    """
    _check("b", b, reset, mask, a=a)
    _check_state("initial_state", initial_state, b, (b.shape[0], b.shape[2]))
    _check_path(path)
    if exporting():
        decay, drive = linear_steps(a, b, reset, mask)
        return linear_stepwise(decay, drive, start_of(initial_state, b, drive.dtype), b.dtype)
    common = torch.promote_types(a.dtype, b.dtype)
    if (ranks := sharing()) is not None:
        _refuse_padding(mask)
        states, final = linear_split(ranks, a.to(common), b.to(common), initial_state, reset, path)
        return states.to(b.dtype), final
    if _one_step(path, a, b, initial_state):
        decay, drive = linear_steps(a, b, reset, mask)
        return _step(decay, drive, start_of(initial_state, b, drive.dtype), b.dtype)
    inputs = a.to(common), b.to(common), initial_state, reset, mask
    states, final = _LinearScan.apply(*inputs) if registered is None else registered.linear(*inputs, path)
    return states.to(b.dtype), final


def lru_scan(
    decay: Planar,
    b: Planar,
    initial_state: Planar | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    path: str | None = None,
) -> tuple[Planar, Planar]:
    """s_t = lambda * s_{t-1} + b_t, complex with constant lambda; a reset puts s_{t-1} = 0 (arXiv 2303.06349, eq. 1).

    decay: (re, im) of lambda, each (N,). b: (re, im), each (B, T, N). Returns the states and the final state, both
    planar.
    """
    _check_planes("b", b)
    _check_planes("decay", decay)
    _check("b (real)", b[0], reset, mask, **{"b (imaginary)": b[1]})
    rows, width = b[0].shape[0], b[0].shape[2]
    for name, part in zip(("decay (real)", "decay (imaginary)"), decay, strict=True):
        _check_tensor(name, part, b[0], (width,))
    if initial_state is not None:
        _check_planes("initial_state", initial_state)
    s_re, s_im = initial_state if initial_state is not None else (None, None)
    _check_state("initial_state (real)", s_re, b[0], (rows, width))
    _check_state("initial_state (imaginary)", s_im, b[0], (rows, width))
    _check_path(path)
    if exporting():
        dtype = recurrence_dtype(b[0])
        lam, drive = (decay[0].to(dtype), decay[1].to(dtype)), (b[0].to(dtype), b[1].to(dtype))
        start = start_of(s_re, b[0], dtype), start_of(s_im, b[0], dtype)
        return planar_stepwise(lam, drive, start, reset, mask, b[0].dtype)  # pyright: ignore[reportReturnType]
    if (ranks := sharing()) is not None:
        _refuse_padding(mask)
        out = lru_split(ranks, decay, (b[0], b[1].to(b[0].dtype)), initial_state, reset, path)
        return (out[0], out[1].to(b[1].dtype)), (out[2], out[3])
    if _one_step(path, *decay, *b, s_re, s_im):
        forward = _step_kernel("lru_forward", *b) or lru_forward
        re, im, final_re, final_im = forward(*decay, *b, s_re, s_im, reset, mask)
        return (re, im), (final_re, final_im)
    inputs = *decay, b[0], b[1].to(b[0].dtype), s_re, s_im, reset, mask
    out = _LruScan.apply(*inputs) if registered is None else registered.lru(*inputs, path)
    return (out[0], out[1].to(b[1].dtype)), (out[2], out[3])


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
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The memory recurrent unit (arXiv 2601.09495; cumulative form arXiv 2605.11855), elementwise:

        z_t = H(|c_t| - beta_t);   s_t = z_t (S(c_t) + epsilon s_{t-1}) + (1 - z_t) s_{t-1}

    c, beta: (B, T, N), beta >= 0. epsilon 0: bistable, states +-1; 1: cumulative, a counter. `slope` is k of the
    surrogate gradients. `reset_state` (N,) is s_0 of a document (zeros if None). At epsilon = 0 every value inside is
    0 or +-1, so any chunking gives the same bits. A NaN in c or beta becomes a NaN state in its own channel, from
    there on.
    """
    _check("c", c, reset, mask, beta=beta)
    _check_state("initial_state", initial_state, c, (c.shape[0], c.shape[2]))
    _check_state("reset_state", reset_state, c, (c.shape[2],))
    _check_path(path)
    if exporting():
        decay, drive = memory_steps(c, beta, epsilon, reset, reset_state, mask)
        return linear_stepwise(decay, drive, start_of(initial_state, c, drive.dtype), c.dtype)
    common = torch.promote_types(c.dtype, beta.dtype)
    if (ranks := sharing()) is not None:
        _refuse_padding(mask)
        wide = c.to(common), beta.to(common)
        states, final = memory_split(ranks, *wide, initial_state, epsilon, slope, reset, reset_state, path)
        return states.to(c.dtype), final
    if _one_step(path, c, beta, initial_state, reset_state):
        forward = _step_kernel("memory_forward", c, beta)
        if forward is not None:
            return forward(c, beta, initial_state, epsilon, reset, reset_state, mask)
        decay, drive = memory_steps(c, beta, epsilon, reset, reset_state, mask)
        return _step(decay, drive, start_of(initial_state, c, drive.dtype), c.dtype)
    inputs = c.to(common), beta.to(common), initial_state, epsilon, slope, reset, reset_state, mask
    states, final = _MemoryScan.apply(*inputs) if registered is None else registered.memory(*inputs, path)
    return states.to(c.dtype), final


def scan_path(device: torch.device, dtype: torch.dtype) -> str:
    """Which implementation the model's scans run through on tensors of this kind, and why, in one line."""
    if registered is None:
        return "torch: two-level scan in pure PyTorch (the hybridlm package is not installed)"
    return registered.explain(device, dtype)


def _one_step(path: str | None, *inputs: Tensor | None) -> bool:
    """Whether this is a decode step that no gradient will pass: then a kernel's call costs more than its work."""
    if path is not None or next(x for x in inputs if x is not None and x.ndim == 3).shape[1] != 1:
        return False
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs))


def _step_kernel(name: str, *inputs: Tensor) -> Callable[..., Any] | None:
    """The kernel of a decode step, where one costs less than a few operations of PyTorch."""
    kernels = None if registered is None else registered.step_kernels(*inputs)
    return None if kernels is None else kernels[name]


def _step(decay: Tensor, drive: Tensor, start: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    state = torch.addcmul(drive[:, 0], decay[:, 0], start)
    return state.unsqueeze(1).to(dtype), state


def _refuse_padding(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError("mask: a sequence that is split over processes has no padding. Pack documents instead.")


def _check_path(path: str | None) -> None:
    if registered is not None:
        registered.check_path(path)
    elif path not in (None, "torch"):
        raise ValueError(
            f"path={path!r}: without the hybridlm package there is only 'torch'. Install it for the others."
        )


def _check(name: str, x: Tensor, reset: Tensor | None, mask: Tensor | None, **same: Tensor) -> None:
    _check_kind(name, x)
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; a scan takes (B, T, N) with T >= 1.")
    for other, tensor in same.items():
        _check_kind(other, tensor)
        if tensor.shape != x.shape:
            raise ValueError(
                f"{other} has shape {tuple(tensor.shape)}; it must have the shape of {name}, {tuple(x.shape)}."
            )
        _check_device(other, tensor, x)
    for other, flags in (("reset", reset), ("mask", mask)):
        if flags is None:
            continue
        if not isinstance(flags, Tensor):
            raise ValueError(f"{other} is of type {type(flags).__name__}; it must be a tensor, or None.")
        if flags.shape != x.shape[:2] or flags.dtype != torch.bool:
            raise ValueError(
                f"{other} is {flags.dtype} of shape {tuple(flags.shape)}; it must be bool of shape "
                f"{tuple(x.shape[:2])}."
            )
        _check_device(other, flags, x)


def _check_state(name: str, state: Tensor | None, beside: Tensor, shape: tuple[int, ...]) -> None:
    if state is not None:
        _check_tensor(name, state, beside, shape)


def _check_tensor(name: str, x: Tensor, beside: Tensor, shape: tuple[int, ...]) -> None:
    _check_kind(name, x)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}.")
    _check_device(name, x, beside)


def _check_kind(name: str, x: Tensor) -> None:
    """Whether x is of a kind that the recurrence keeps: a complex number would lose a part, an integer its fraction."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is of type {type(x).__name__}; it must be a tensor of floating-point numbers.")
    if x.dtype not in _DTYPES:
        allowed = ", ".join(map(str, _DTYPES))
        planar = "; lru_scan takes complex numbers as their two planes" if x.dtype.is_complex else ""
        raise ValueError(f"{name} is {x.dtype}; it must be one of {allowed}{planar}.")
    if x.layout != torch.strided:
        raise ValueError(f"{name} has the layout {x.layout}; it must be a dense tensor.")


def _check_device(name: str, x: Tensor, beside: Tensor) -> None:
    if x.device != beside.device:
        raise ValueError(f"{name} is on {x.device}; it must be on the device of the other inputs, {beside.device}.")


def _check_planes(name: str, pair: Planar) -> None:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name} is of type {type(pair).__name__}; it must be two tensors, (real, imaginary).")


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, initial_state, reset, mask):
        states, final = linear_forward(a, b, initial_state, reset, mask)
        ctx.save_for_backward(a, states, initial_state, reset, mask)
        return states, final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        saved = _, _, start, _, _ = ctx.saved_tensors  # read once, as checkpointing wants it
        *grads, grad_start = linear_backward(grad_states, grad_final, *saved)
        return *grads, _cast(grad_start, start), None, None


class _LruScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask):
        out = lru_forward(lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask)
        ctx.save_for_backward(lam_re, lam_im, *out[:2], s_re, s_im, reset, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        saved = lam_re, lam_im, _, _, s_re, s_im, _, _ = ctx.saved_tensors
        d_re, d_im, to_re, to_im, start_re, start_im = lru_backward(*grads, *saved)
        starts = _cast(start_re, s_re), _cast(start_im, s_im)
        return d_re.to(lam_re.dtype), d_im.to(lam_im.dtype), to_re, to_im, *starts, None, None


class _MemoryScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, beta, initial_state, epsilon, slope, reset, reset_state, mask):
        states, final = memory_forward(c, beta, initial_state, epsilon, reset, reset_state, mask)
        ctx.save_for_backward(c, beta, states, initial_state, reset, reset_state, mask)
        ctx.epsilon, ctx.slope = epsilon, slope
        return states, final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_final):
        c, beta, states, start, reset, reset_state, mask = ctx.saved_tensors
        options = start, ctx.epsilon, ctx.slope, reset, reset_state, mask
        grads = memory_backward(grad_states, grad_final, c, beta, states, *options)
        grad_c, grad_beta, grad_start, fresh = grads
        fresh = None if fresh is None else _cast(fresh, reset_state)
        return grad_c, grad_beta, _cast(grad_start, start), None, None, None, fresh, None


def _cast(grad: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else grad.to(like.dtype)
