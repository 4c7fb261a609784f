"""What stands between the matrix products, each one pass over memory where there are kernels for it.

In PyTorch each of these is a chain of passes, forward and backward, and on a CPU the passes cost as much as the
products. Where the package is installed and has kernels for a tensor, they run; else the PyTorch form below, which
defines what is right. No second derivative passes the kernels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .seam_hybridlm import fused
from .stepwise_hybridlm import exporting

DECAY_SHARPNESS = 8.0
"""c of the real-gated linear recurrent unit."""


def kernels_for(x: Tensor, *others: Tensor | None) -> Any:
    """The kernels for tensors like x, or None; `others` must be of its dtype.

    Not while a graph is traced: a compiler fuses the PyTorch form itself.
    """
    if fused is None or torch.compiler.is_compiling() or not fused.serves(x):
        return None
    return fused if all(other is None or other.dtype == x.dtype for other in others) else None


class RMSNorm(nn.RMSNorm):
    """x w / sqrt(mean(x^2) + eps) over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x, self.weight)
        if kernels is None or self.eps is None:
            return super().forward(x)
        return kernels.norm(x, self.weight, self.eps)


def silu_gate(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u, elementwise."""
    kernels = kernels_for(g, u)
    return F.silu(g) * u if kernels is None else kernels.gate(g, u)


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(x), whose slope is cut at 500: it is infinite where the unit keeps everything (a = 1)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad * (0.5 / root.clamp_min(1e-3))


def _bounded_sqrt(x: Tensor) -> Tensor:
    return x.sqrt() if exporting() else _BoundedSqrt.apply(x)  # pyright: ignore[reportReturnType]


def rglru_gates(pre: Tensor, bias: Tensor, x: Tensor, softplus: Tensor) -> tuple[Tensor, Tensor]:
    """a = exp(-8 r softplus) and b = sqrt(1 - a^2) i x, with r and i = sigmoid(pre + bias) (arXiv 2402.19427).

    pre (H, B T, 2 N / H): of each head H those of r, then those of i; bias (H, 2 N / H); x (B, T, N); softplus (N,).
    a, b (B, T, N), fp32, or fp64 for fp64.
    """
    kernels = kernels_for(x, pre)
    if kernels is not None:
        return kernels.rglru(pre, bias, x, softplus)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    r, i = torch.sigmoid(pre.to(dtype) + bias.to(dtype).unsqueeze(1)).transpose(0, 1).chunk(2, dim=-1)
    r, i = r.reshape(x.shape), i.reshape(x.shape)
    log_a = -DECAY_SHARPNESS * r * softplus.to(dtype)
    return torch.exp(log_a), _bounded_sqrt(-torch.expm1(2 * log_a)) * (i * x.to(dtype))
