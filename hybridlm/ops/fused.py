"""The kernels between the matrix products, with their gradients: what `hybridlm.model.fused_hybridlm` calls on a CPU.

They follow the path of the scans: where that is `cpu`, they run; `using("torch")` turns both off.
"""

import logging
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlm.model.shapes_hybridlm import without_kernels, without_values
from hybridlm.ops.cpu import fused as c
from hybridlm.ops.dispatch import choose, has_memory
from hybridlm.ops.selfcheck import checking, fused_disagreement

_logger = logging.getLogger("hybridlm.ops")


def serves(x: Tensor) -> bool:
    """Whether the kernels take a tensor like x (B, T, N), of any size: a decode step rounds as a prefill does.

    Inside `shapes_alone`, also one without values, of which they make their outputs and no more.
    """
    if x.device.type != "cpu" or x.ndim != 3 or checking():
        return False
    if without_kernels() or not (has_memory(x) or without_values()):
        return False
    return choose(x.device, x.dtype).path == "cpu" and _right(x.dtype)


@cache
def _right(dtype: torch.dtype) -> bool:
    wrong = fused_disagreement(dtype)
    if wrong is not None:
        _logger.warning("norms, gates and convolutions run in plain PyTorch, which is slower: %s", wrong)
    return wrong is None


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    if not torch.is_grad_enabled():
        return c.norm_forward(x, weight, epsilon)
    return _Norm.apply(x, weight, epsilon)  # pyright: ignore[reportReturnType]


def gate(g: Tensor, u: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return c.gate_forward(g, u)
    return _Gate.apply(g, u)  # pyright: ignore[reportReturnType]


def conv(u: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, reset: Tensor | None) -> Tensor:
    if not torch.is_grad_enabled():
        return c.conv_forward(u, past, weight, bias, reset)
    return _Conv.apply(u, past, weight, bias, reset)  # pyright: ignore[reportReturnType]


def rglru(pre: Tensor, bias: Tensor, x: Tensor, softplus: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled():
        return c.rglru_forward(pre, x, bias, softplus)
    return _Rglru.apply(pre, bias, x, softplus)  # pyright: ignore[reportReturnType]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return c.norm_forward(x, weight, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = c.norm_backward(x, grad, weight, ctx.epsilon)
        return grad_x, grad_weight.to(weight.dtype), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, u):
        ctx.save_for_backward(g, u)
        return c.gate_forward(g, u)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        g, u = ctx.saved_tensors
        return c.gate_backward(g, u, grad)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, past, weight, bias, reset):
        ctx.save_for_backward(u, past, weight, reset)
        ctx.bias_dtype = bias.dtype
        return c.conv_forward(u, past, weight, bias, reset)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        u, past, weight, reset = ctx.saved_tensors
        grad_u, grad_past, grad_weight, grad_bias = c.conv_backward(u, past, grad, weight, reset)
        return grad_u, grad_past, grad_weight.to(weight.dtype), grad_bias.to(ctx.bias_dtype), None


class _Rglru(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, bias, x, softplus):
        ctx.save_for_backward(pre, bias, x, softplus)
        return c.rglru_forward(pre, x, bias, softplus)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_a, grad_b):
        pre, bias, x, softplus = ctx.saved_tensors
        grads = c.rglru_backward(pre, x, grad_a, grad_b, bias, softplus)
        grad_pre, grad_bias, grad_x, grad_softplus = grads
        return grad_pre, grad_bias.to(bias.dtype), grad_x, grad_softplus.to(softplus.dtype)
