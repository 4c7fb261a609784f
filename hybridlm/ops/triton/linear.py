"""linear_scan on Triton: s_t = a_t s_{t-1} + b_t.

Numbers moved a step and channel: forward 3 (the floor), 5 where time is split; backward 5 (the floor), 7 where it is.
Tensors (B, T, N) are of one dtype; the recurrence runs in fp32, in fp64 for fp64.
"""

import torch
from torch import Tensor

from hybridlm.ops.triton import plan
from hybridlm.ops.triton.launch import launch, readable, recurrence_dtype, strides, summaries, whole

FORWARD, BACKWARD = 32, 16
"""Steps of a tile where time is in one piece."""


def linear_forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States (B, T, N) in b's dtype and the final state (B, N) in the dtype of the recurrence."""
    from hybridlm.ops.triton import linear_kernels as kernels

    a, b, initial, reset, mask = readable(a), readable(b), whole(initial_state), whole(reset), whole(mask)
    rows, length, width = b.shape
    cut = plan.choose(b, FORWARD)
    states = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    final = torch.empty(rows, width, dtype=recurrence_dtype(b), device=b.device)
    sizes = (length, width, cut.steps, cut.chunks, *strides(a, b))
    summary = summaries(b, cut, reset, 2)
    if cut.chunks > 1:
        launch(kernels.reduce, b, cut, cut.chunks - 1, a, b, reset, mask, *summary, *sizes)
    launch(kernels.forward, b, cut, cut.chunks, a, b, initial, reset, mask, *summary, states, final, *sizes)
    return states, final


def linear_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    a: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a and b in a's dtype, of the initial state in the dtype of the recurrence."""
    from hybridlm.ops.triton import linear_kernels as kernels

    grad, a, states = readable(grad_states), readable(a), states.contiguous()
    initial, reset, mask = whole(initial_state), whole(reset), whole(mask)
    rows, length, width = a.shape
    cut = plan.choose(a, BACKWARD)
    grad_a, grad_b = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for _ in range(2))
    grad_initial = torch.empty(rows, width, dtype=recurrence_dtype(a), device=a.device)
    sizes = (length, width, cut.steps, cut.chunks, *strides(grad, a))
    summary = summaries(a, cut, reset, 2)
    if cut.chunks > 1:
        launch(kernels.reduce_back, a, cut, cut.chunks - 1, grad, a, reset, mask, *summary, *sizes)
    inputs = (grad, a, whole(grad_final), states, initial, reset, mask)
    launch(kernels.backward, a, cut, cut.chunks, *inputs, *summary, grad_a, grad_b, grad_initial, *sizes)
    return grad_a, grad_b, grad_initial
