"""Other pure-PyTorch forms of the scans: what a kernel has to beat, besides the two-level path `torch`.

    doubling       Hillis and Steele: log2(T) passes over everything
    associative    torch's own `associative_scan`, uncompiled
    gates          a memory unit as gates in eager PyTorch in front of a linear scan

All are differentiated by autograd, run in fp32 (fp64 for fp64 inputs), and give states as the inputs and the final
state, as the scans do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from hybridlm.model.planar_hybridlm import Planar
from hybridlm.model.surrogate_hybridlm import heaviside, sign
from hybridlm.model.twolevel_hybridlm import recurrence_dtype


def doubling_linear(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """s_t = a_t s_{t-1} + b_t; (B, T, N)."""
    dtype, length, shift = recurrence_dtype(b), b.shape[1], 1
    decay, state = a.to(dtype), b.to(dtype)
    while shift < length:
        later = torch.addcmul(state[:, shift:], decay[:, shift:], state[:, :-shift])
        state = torch.cat([state[:, :shift], later], dim=1)
        if 2 * shift < length:  # the first `shift` factors are not read again
            decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], dim=1)
        shift *= 2
    return state.to(b.dtype), state[:, -1]


def doubling_lru(decay: Planar, b: Planar) -> tuple[Planar, Planar]:
    """s_t = lambda s_{t-1} + b_t, planar; lambda (N,), b (B, T, N)."""
    dtype, length, shift = recurrence_dtype(b[0]), b[0].shape[1], 1
    lam_re, lam_im = decay[0].to(dtype), decay[1].to(dtype)
    re, im = b[0].to(dtype), b[1].to(dtype)
    while shift < length:
        before_re, before_im = re[:, :-shift], im[:, :-shift]
        later_re = re[:, shift:] + lam_re * before_re - lam_im * before_im
        later_im = im[:, shift:] + lam_re * before_im + lam_im * before_re
        re, im = torch.cat([re[:, :shift], later_re], dim=1), torch.cat([im[:, :shift], later_im], dim=1)
        lam_re, lam_im = lam_re * lam_re - lam_im * lam_im, 2 * lam_re * lam_im
        shift *= 2
    return (re.to(b[0].dtype), im.to(b[1].dtype)), (re[:, -1], im[:, -1])


def associative_linear(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = recurrence_dtype(b)
    _, state = _associative(_then, (a.to(dtype), b.to(dtype)))
    return state.to(b.dtype), state[:, -1]


def associative_lru(decay: Planar, b: Planar) -> tuple[Planar, Planar]:
    dtype = recurrence_dtype(b[0])
    factors = [part.to(dtype).expand(b[0].shape) for part in decay]
    _, _, re, im = _associative(_then_planar, (*factors, b[0].to(dtype), b[1].to(dtype)))
    return (re.to(b[0].dtype), im.to(b[1].dtype)), (re[:, -1], im[:, -1])


def memory_gates(c: Tensor, beta: Tensor, epsilon: float, slope: float) -> tuple[Tensor, Tensor]:
    """a and b of s_t = a_t s_{t-1} + b_t for a memory unit, through the surrogate gradients."""
    dtype = recurrence_dtype(c)
    drive = c.to(dtype)
    z = heaviside(drive.abs() - beta.to(dtype), slope)
    return 1 + (epsilon - 1) * z, z * sign(drive, slope)


def _associative(combine: Any, elements: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    module = import_module("torch._higher_order_ops.associative_scan")
    return module.associative_scan(combine, elements, dim=1, combine_mode="generic")


def _then(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return first[0] * second[0], torch.addcmul(second[1], second[0], first[1])


def _then_planar(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    a_re, a_im, x_re, x_im = first
    b_re, b_im, y_re, y_im = second
    return (
        a_re * b_re - a_im * b_im,
        a_re * b_im + a_im * b_re,
        y_re + b_re * x_re - b_im * x_im,
        y_im + b_re * x_im + b_im * x_re,
    )
