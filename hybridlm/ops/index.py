"""Finite-state heads behind the model's seam: `index_scan` as operators of torch, on the kernels of the path that runs.

The path is that of the other scans. Its kernels for this one are tried by themselves, since they are other kernels:
where they are wrong, this scan alone runs in pure PyTorch.
"""

import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from hybridlm.errors import UserError
from hybridlm.ops import reference
from hybridlm.ops.dispatch import check_split, choose, forced, has_memory
from hybridlm.ops.selfcheck import index_disagreement

_MODULES = {
    "torch": "hybridlm.model.indexmaps_hybridlm",
    "cpu": "hybridlm.ops.cpu.index",
    "triton": "hybridlm.ops.triton.index",
}
_logger = logging.getLogger("hybridlm.ops")


def scan(
    theta, bias, noise, values, initial_state, temperature: float, reset, mask, keep: bool, path: str | None = None
) -> tuple[Tensor, Tensor]:
    """h and states of `index_scan`; keep: whether a gradient will be asked for."""
    if path is not None:
        choose(theta.device, theta.dtype, path)
    path = forced(path)
    inputs = theta, bias, noise, values, initial_state, temperature, reset, mask
    if path == "reference":
        return reference.index_values(*inputs)
    if not keep and theta.shape[1] == 1 and not torch.compiler.is_compiling() and has_memory(theta):
        return kernels(theta.device, theta.dtype, path).index_forward(*inputs, False)[:2]  # a step: no operator's cost
    h, states, _, _ = index_forward(*inputs, keep, path or "")
    return h, states


def kernels(device: torch.device, dtype: torch.dtype, path: str | None) -> Any:
    """The module whose `index_forward` and `index_backward` run for theta of a dtype on a device.

    UserError where a path is forced whose kernels cannot.
    """
    chosen = choose(device, dtype, path).path
    check_split(chosen)  # who asks for kernels of it has parts
    wrong = None if chosen == "torch" else _wrong(chosen, device.type, dtype)
    if wrong is None:
        return import_module(_MODULES[chosen])
    if forced(path) == chosen:
        raise UserError(f"path={chosen!r}: its kernels of index_scan cannot run here: {wrong}. Take 'torch'.")
    return import_module(_MODULES["torch"])


@cache
def _wrong(path: str, device: str, dtype: torch.dtype) -> str | None:
    wrong = index_disagreement(import_module(_MODULES[path]), device, dtype)
    if wrong is not None:
        _logger.warning("finite-state heads run in pure PyTorch, which is slower: %s", wrong)
    return wrong


def _wide(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape, dtype=torch.float64 if (dtype or x.dtype) == torch.float64 else torch.float32)


@custom_op("hybridlm::index_forward", mutates_args=())
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
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = theta, bias, noise, values, initial_state, temperature, reset, mask, keep
    return kernels(theta.device, theta.dtype, path or None).index_forward(*inputs)


@index_forward.register_fake
def _(theta, bias, noise, values, initial_state, temperature, reset, mask, keep, path):
    kept = theta.shape[:4] if keep else (0,)
    h, p = _wide(theta, (*theta.shape[:3], values.shape[2])), _wide(theta, kept)
    return h, theta.new_empty(theta.shape[:3], dtype=torch.uint8), p, theta.new_empty(kept, dtype=torch.uint8)


@custom_op("hybridlm::index_backward", mutates_args=())
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
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = temperature, reset, mask, dtype
    return kernels(p.device, dtype, path or None).index_backward(grad, p, maps, states, values, initial_state, *options)


@index_backward.register_fake
def _(grad, p, maps, states, values, initial_state, temperature, reset, mask, dtype, path):
    n = p.shape[3]
    grad_theta = p.new_empty((*p.shape, n), dtype=dtype)
    return grad_theta, _wide(p, (p.shape[2], n, n), dtype), _wide(p, tuple(values.shape), dtype)


def _no_second(*_: Any) -> Any:
    raise RuntimeError("index_scan: its gradient is a surrogate, which has no derivative.")


index_backward.register_autograd(_no_second)


def _keep(ctx, inputs, output):
    theta, bias, _, values, initial_state, ctx.temperature, reset, mask, _, ctx.path = inputs
    _, states, p, maps = output
    ctx.dtype, ctx.biased = theta.dtype, bias is not None
    ctx.mark_non_differentiable(states, p, maps)
    ctx.save_for_backward(p, maps, states, values, initial_state, reset, mask)


def _gradients(ctx, grad, *_):
    p, maps, states, values, start, reset, mask = ctx.saved_tensors  # read once, as checkpointing wants it
    options = ctx.temperature, reset, mask, ctx.dtype, ctx.path
    grad_theta, grad_bias, grad_values = index_backward(grad, p, maps, states, values, start, *options)
    return grad_theta, grad_bias if ctx.biased else None, None, grad_values, *(None,) * 6


index_forward.register_autograd(_gradients, setup_context=_keep)
