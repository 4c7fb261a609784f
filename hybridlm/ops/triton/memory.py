"""memory_scan on Triton: gate, sign, epsilon and resets computed from c and beta inside the kernel.

Numbers moved a step and channel: forward 3 (the floor), 5 where time is split; backward 5 (the floor) and one stored
state in `BACKWARD` steps, from which the others are computed again; where time is split, 3 more.
"""

import torch
from torch import Tensor

from hybridlm.ops.triton import plan
from hybridlm.ops.triton.launch import launch, readable, recurrence_dtype, strides, summaries, whole

FORWARD, BACKWARD = 32, 12
"""Steps of a tile where time is in one piece."""


def memory_forward(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """States (B, T, N) in c's dtype and the final state (B, N) in the dtype of the recurrence."""
    from hybridlm.ops.triton import memory_kernels as kernels

    c, beta, reset, fresh, mask = readable(c), readable(beta), whole(reset), whole(reset_state), whole(mask)
    rows, length, width = c.shape
    cut = plan.choose(c, FORWARD)
    states = torch.empty(c.shape, dtype=c.dtype, device=c.device)
    final = torch.empty(rows, width, dtype=recurrence_dtype(c), device=c.device)
    sizes = (length, width, cut.steps, cut.chunks, *strides(c, beta))
    summary = summaries(c, cut, reset, 2)
    options = (float(epsilon), reset, fresh, mask)
    if cut.chunks > 1:
        launch(kernels.reduce, c, cut, cut.chunks - 1, c, beta, *options, *summary, *sizes)
    inputs = (c, beta, whole(initial_state), *options)
    launch(kernels.forward, c, cut, cut.chunks, *inputs, *summary, states, final, *sizes)
    return states, final


def memory_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    c: Tensor,
    beta: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    slope: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of c and beta in c's dtype; of the initial state, (B, N), and of reset_state, (N,), in the dtype of the
    recurrence, the latter None without reset or reset_state."""
    from hybridlm.ops.triton import memory_kernels as kernels

    c, beta, grad, states = readable(c), readable(beta), readable(grad_states), states.contiguous()
    reset, fresh, mask = whole(reset), whole(reset_state), whole(mask)
    rows, length, width = c.shape
    cut = plan.choose(c, BACKWARD)
    wide = {"dtype": recurrence_dtype(c), "device": c.device}
    to_c, to_beta = (torch.empty(c.shape, dtype=c.dtype, device=c.device) for _ in range(2))
    to_initial = torch.empty(rows, width, **wide)
    to_fresh = None if reset is None or fresh is None else torch.empty(rows * cut.chunks, width, **wide)
    sizes = (length, width, cut.steps, cut.chunks, *strides(c, beta, grad))
    summary = summaries(c, cut, reset, 2)
    if cut.chunks > 1:
        inputs = (c, beta, grad, float(epsilon), reset, mask)
        launch(kernels.reduce_back, c, cut, cut.chunks - 1, *inputs, *summary, *sizes)
    inputs = (c, beta, grad, whole(grad_final), states, whole(initial_state), float(epsilon), float(slope))
    flags = (reset, fresh, mask)
    outputs = (to_c, to_beta, to_initial, to_fresh)
    launch(kernels.backward, c, cut, cut.chunks, *inputs, *flags, *summary, *outputs, *sizes)
    return to_c, to_beta, to_initial, None if to_fresh is None else to_fresh.sum(0)
