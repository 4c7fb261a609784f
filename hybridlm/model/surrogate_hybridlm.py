"""The two step functions of memory recurrent units, exact forward and smooth backward (arXiv 2601.09495).

H(x) = 1[x >= 0]        H'(x) := k / (1 + (pi k x)^2)
S(x) = 2 H(x) - 1       S'(x) := 2 k / (1 + (pi k x)^2)
"""

import math

import torch
from torch import Tensor

from .stepwise_hybridlm import exporting


def surrogate_slope(x: Tensor, k: float) -> Tensor:
    """H'(x), elementwise, in x's shape and dtype; S' is twice that."""
    return k / (1 + (math.pi * k * x) ** 2)


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.k = k
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return grad * surrogate_slope(x, ctx.k), None


def heaviside(x: Tensor, k: float = 1.0) -> Tensor:
    """H(x) in {0, 1}, x's shape and dtype; gradient H' with slope k."""
    if exporting():
        return (x >= 0).to(x.dtype)
    return _Heaviside.apply(x, k)  # pyright: ignore[reportReturnType]


def sign(x: Tensor, k: float = 1.0) -> Tensor:
    """S(x) in {-1, +1}, with S(0) = +1; x's shape and dtype; gradient S' with slope k."""
    return 2 * heaviside(x, k) - 1
