"""The scan of finite-state heads on Triton; arguments and results as of `hybridlm.model.indexmaps_hybridlm`.

Forward theta is read once for the maps, and the rows that decided once more; backward it is not read. What is summed
over all tokens is summed by matrix products, always in one order; no atomics.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hybridlm.model.indexmaps_hybridlm import before_of, one_hot, starts_of
from hybridlm.ops.triton.launch import whole
from hybridlm.ops.triton.plan import PROGRAMS_EACH, multiprocessors

TILE = 4096
"""Numbers of a tile of sources and destinations, at most."""
SHORTEST = 32
"""Steps of a chunk, at least."""


def index_forward(
    theta: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from hybridlm.ops.triton import index_kernels as kernels

    theta, bias, noise, values = theta.contiguous(), whole(bias), whole(noise), values.contiguous()
    start, reset, mask = initial_state.contiguous(), whole(reset), whole(mask)
    rows, length, heads, n = theta.shape[:4]
    chunks, steps = split(length, rows * heads, theta.device)
    h = _empty(theta, (rows, length, heads, values.shape[2]))
    states, maps = _bytes(theta, (rows, length, heads)), _bytes(theta, (rows, length, heads, n))
    p = _empty(theta, (rows, length, heads, n) if keep else (0,))
    composed = _bytes(theta, (rows, chunks, heads, n)) if chunks > 1 else None
    state, tokens, all_heads = _language(theta.dtype), rows * length * heads, rows * heads
    tile = {"N": n, "WIDE": _wide(n)}
    blocks = tile | {"SOURCES": _sources(n), "num_warps": 4 if n > 16 else 1}
    walked = length, steps, chunks, heads
    _run(kernels.maps, theta, tokens, theta, bias, noise, reset, mask, maps, heads, **blocks, STATE=state)
    _run(kernels.compose, theta, all_heads * (chunks - 1), maps, composed, *walked, **tile, num_warps=1)
    _run(kernels.walk, theta, all_heads * chunks, maps, composed, start, states, *walked, N=n, num_warps=1)
    inputs = theta, bias, noise, values, start, states, reset, mask, h, p if keep else None
    emitted = {"D": values.shape[2], "WIDE_D": _wide(values.shape[2]), "STATE": state, "num_warps": 1}
    _run(kernels.emit, theta, tokens, *inputs, float(temperature), length, heads, **tile, **emitted)
    return h, states, p, maps if keep else _bytes(theta, (0,))


def index_backward(
    grad: Tensor,
    p: Tensor,
    maps: Tensor,
    states: Tensor,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    from hybridlm.ops.triton import index_kernels as kernels

    rows, length, heads, n = p.shape
    before = before_of(states, initial_state, starts_of(reset, mask))
    q = torch.einsum("btkd,knd->btkn", grad, values).contiguous()
    p, maps, states, start = (x.contiguous() for x in (p, maps, states, initial_state))
    reset, mask = whole(reset), whole(mask)
    chunks, steps = split(length, rows * heads, p.device)
    summary: tuple[Tensor | None, ...] = (None, None, None)
    if chunks > 1:
        shape = rows, chunks, heads
        summary = _empty(p, (*shape, n)), _bytes(p, (*shape, n)), _bytes(p, shape)
    row, grad_theta = _empty(p, (rows, length, heads, n)), torch.empty(*p.shape, n, dtype=dtype, device=p.device)
    tile, state = {"N": n, "WIDE": _wide(n)}, {"STATE": _language(p.dtype), "num_warps": 1}
    walked, all_heads = (length, steps, chunks, heads), rows * heads
    inputs = q, maps, reset, mask
    _run(kernels.reduce_back, p, all_heads * (chunks - 1), *inputs, *summary, *walked, **tile, **state)
    inputs = q, maps, p, reset, mask, *summary, row, float(temperature)
    _run(kernels.walk_back, p, all_heads * chunks, *inputs, *walked, **tile, **state)
    inputs = row, start, states, reset, mask, grad_theta, length, heads
    blocks = {"SOURCES": _sources(n), "num_warps": 4 if n > 16 else 1}
    _run(kernels.scatter, p, rows * length * heads, *inputs, **tile, **blocks)
    grad_bias = torch.einsum("btkj,btkl->kjl", one_hot(before, n, row.dtype), row)
    grad_values = torch.einsum("btkn,btkd->knd", one_hot(states, n, row.dtype), grad)
    return grad_theta, grad_bias, grad_values


def split(length: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Chunks of time and steps of each, where so many programs walk all of it otherwise. As `plan.choose`: fixed."""
    wanted = math.ceil(PROGRAMS_EACH * multiprocessors(device) / max(1, programs))
    wanted = max(1, min(wanted, math.isqrt(length) // 2, length // SHORTEST))
    steps = math.ceil(length / wanted)
    return math.ceil(length / steps), steps


def _wide(n: int) -> int:
    """Lanes for n numbers."""
    return max(2, 1 << (n - 1).bit_length())


def _sources(n: int) -> int:
    """Rows of a tile."""
    return max(1, min(_wide(n), TILE // _wide(n)))


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=dtype, device=like.device)


def _bytes(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device=like.device)


def _language(dtype: torch.dtype) -> Any:
    from hybridlm.ops.triton.language import tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _run(kernel: Any, x: Tensor, programs: int, *arguments: Any, **constants: Any) -> None:
    """So many programs of a kernel on the device of x, if any."""
    if programs == 0:
        return
    with nullcontext() if x.device.type == "cpu" else torch.get_device_module(x.device).device(x.device):
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)
