"""What stands between the matrix products, each as one pass over memory, in C: no autograd.

x, u, g, ... are (B, T, N) of one storage dtype; weights and what is summed over tokens in fp32, or fp64 for fp64.
"""

import struct

import torch
from torch import Tensor

from hybridlm.model.shapes_hybridlm import without_values
from hybridlm.ops.cpu.library import DTYPES, ENOUGH, address, library, run

_NAMES = (
    "conv_forward", "conv_backward", "gate_forward", "gate_backward",
    "norm_forward", "norm_backward", "rglru_forward", "rglru_backward",
)  # fmt: skip
OPERATIONS = {name: number for number, name in enumerate(_NAMES)}
"""As fused.h numbers them."""

_JOB = struct.Struct("3q 12q 8q 3q q q d 6i")
"""`FusedJob` of fused.h."""


def wide(x: Tensor) -> torch.dtype:
    """Of weights, and of what is summed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def norm_forward(x: Tensor, weight: Tensor, epsilon: float, **forced) -> Tensor:
    """y = x weight / sqrt(mean(x^2) + epsilon); weight (N,)."""
    y = _like(x)
    _call("norm_forward", x, (x,), (y,), (weight,), epsilon=epsilon, **forced)
    return y


def norm_backward(x: Tensor, grad: Tensor, weight: Tensor, epsilon: float, **forced) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    grad_x, summed = _like(x), _planes(1, x)
    _call("norm_backward", x, (x, grad), (grad_x,), (weight,), summed, epsilon=epsilon, **forced)
    return grad_x, summed[0]


def gate_forward(g: Tensor, u: Tensor, **forced) -> Tensor:
    """y = silu(g) u."""
    y = _like(g)
    _call("gate_forward", g, (g, u), (y,), **forced)
    return y


def gate_backward(g: Tensor, u: Tensor, grad: Tensor, **forced) -> tuple[Tensor, Tensor]:
    """Gradients of g and u."""
    grad_g, grad_u = _like(g), _like(g)
    _call("gate_backward", g, (g, u, grad), (grad_g, grad_u), **forced)
    return grad_g, grad_u


def conv_forward(
    u: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, reset: Tensor | None, **forced
) -> Tensor:
    """v_t = bias + sum_k w_k u_{t-k}: weight (N, K), its last column the present; past (B, K-1, N); reset (B, T)."""
    v = _like(u)
    taps = weight.shape[1]
    _call("conv_forward", u, (u, past), (v,), (_taps_first(weight), bias), reset=reset, taps=taps, **forced)
    return v


def conv_backward(
    u: Tensor, past: Tensor | None, grad: Tensor, weight: Tensor, reset: Tensor | None, **forced
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of u, past, weight and bias."""
    grad_u, grad_past = _like(u), None if past is None else _like(past)
    taps = weight.shape[1]
    summed = _planes(taps + 1, u)
    outputs = (grad_u,) if grad_past is None else (grad_u, grad_past)
    inputs = (u, past, grad)
    _call("conv_backward", u, inputs, outputs, (_taps_first(weight),), summed, reset=reset, taps=taps, **forced)
    return grad_u, grad_past, summed[:taps].flip(0).t(), summed[taps]


def rglru_forward(pre: Tensor, x: Tensor, bias: Tensor, softplus: Tensor, **forced) -> tuple[Tensor, Tensor]:
    """a = exp(-8 r softplus), b = sqrt(1 - a^2) i x with r, i = sigmoid(pre + bias).

    pre (H, B T, 2 N / H), bias (H, 2 N / H): of each head H those of r, then those of i. x, a, b (B, T, N).
    softplus (N,).
    """
    dtype = wide(x)
    a, b = (torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for _ in range(2))
    _call("rglru_forward", x, (pre, x), (a, b), (bias, softplus), heads=pre.shape[0], **forced)
    return a, b


def rglru_backward(
    pre: Tensor, x: Tensor, grad_a: Tensor, grad_b: Tensor, bias: Tensor, softplus: Tensor, **forced
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of pre, bias, x and softplus."""
    grad_pre, grad_x, summed = _like(pre), _like(x), _planes(3, x)
    inputs, channel = (pre, x, grad_a, grad_b), (bias, softplus)
    _call("rglru_backward", x, inputs, (grad_pre, grad_x), channel, summed, heads=pre.shape[0], **forced)
    return grad_pre, summed[:2].view(bias.shape), grad_x, summed[2]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _planes(count: int, x: Tensor) -> Tensor:
    return torch.empty(count, x.shape[2], dtype=wide(x))


def _taps_first(weight: Tensor) -> Tensor:
    """(N, K), the present last -> (K, N), the present first."""
    return weight.flip(1).t()


def _call(
    operation: str,
    x: Tensor,
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    channel: tuple[Tensor, ...] = (),
    summed: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    epsilon: float = 0.0,
    taps: int = 0,
    heads: int = 1,
    isa: str | None = None,
) -> None:
    """x gives shape and dtype. What the tuples mean for an operation stands in fused_kernels.h."""
    rows, steps, width = x.shape
    dtype = wide(x)
    channel = tuple(w if w.dtype == dtype and w.is_contiguous() else w.to(dtype).contiguous() for w in channel)
    inputs = tuple(None if i is None else _token_rows(i) for i in inputs)
    reset = None if reset is None else reset.contiguous()
    if without_values():
        return
    fields: list[float] = [rows * steps, steps, width]
    for tensors, places in ((inputs, 6), (outputs, 4)):
        for tensor in tensors:
            fields += (0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(1))
        fields += [0] * (2 * (places - len(tensors)))
    fields += [w.data_ptr() for w in channel]
    fields += [0] * (3 - len(channel))
    fields += address(summed), address(reset), epsilon
    threads = max(1, min(torch.get_num_threads(), rows * steps * width // ENOUGH))
    planes = 0 if summed is None else summed.numel() // width
    fields += OPERATIONS[operation], DTYPES[x.dtype], threads, taps, heads, planes
    run(library().code.hybridlm_fused, _JOB.pack(*fields), operation, x.dtype, isa)


def _token_rows(x: Tensor) -> Tensor:
    """As the kernels read (B, T, N): tokens at one distance from each other, channels side by side."""
    flat = x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if flat else x.contiguous()
