"""lru_scan on Triton: s_t = lambda s_{t-1} + b_t, complex, lambda constant over time.

Numbers moved a step and channel: forward 4 (the floor), 6 where time is split; backward 6 (the floor), 8 where it is.
"""

import torch
from torch import Tensor

from hybridlm.ops.triton import plan
from hybridlm.ops.triton.launch import launch, readable, recurrence_dtype, strides, summaries, whole

FORWARD, BACKWARD = 32, 16
"""Steps of a tile where time is in one piece."""


def lru_forward(
    lam_re: Tensor,
    lam_im: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States (re, im), (B, T, N) in b's dtype, and the final state (re, im), (B, N) in the dtype of the recurrence."""
    from hybridlm.ops.triton import lru_kernels as kernels

    re, im, reset, mask = readable(b_re), readable(b_im), whole(reset), whole(mask)
    lam = whole(lam_re), whole(lam_im)
    rows, length, width = re.shape
    cut = plan.choose(re, FORWARD)
    states = [torch.empty(re.shape, dtype=re.dtype, device=re.device) for _ in range(2)]
    final = [torch.empty(rows, width, dtype=recurrence_dtype(re), device=re.device) for _ in range(2)]
    sizes = (length, width, cut.steps, cut.chunks, *strides(re, im))
    summary = summaries(re, cut, reset, 4)
    if cut.chunks > 1:
        launch(kernels.reduce, re, cut, cut.chunks - 1, *lam, re, im, reset, mask, *summary, *sizes)
    inputs = (*lam, re, im, whole(s_re), whole(s_im), reset, mask)
    launch(kernels.forward, re, cut, cut.chunks, *inputs, *summary, *states, *final, *sizes)
    return states[0], states[1], final[0], final[1]


def lru_backward(
    grad_re: Tensor,
    grad_im: Tensor,
    grad_final_re: Tensor,
    grad_final_im: Tensor,
    lam_re: Tensor,
    lam_im: Tensor,
    re: Tensor,
    im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of lambda (re, im), (N,), of b (re, im) in the states' dtype, of the initial state (re, im)."""
    from hybridlm.ops.triton import lru_kernels as kernels

    grads = readable(grad_re), readable(grad_im)
    re, im, reset, mask = re.contiguous(), im.contiguous(), whole(reset), whole(mask)
    lam = whole(lam_re), whole(lam_im)
    rows, length, width = re.shape
    cut = plan.choose(re, BACKWARD)
    wide = {"dtype": recurrence_dtype(re), "device": re.device}
    to_lam = torch.empty(2, rows * cut.chunks, width, **wide)
    to_b = [torch.empty(re.shape, dtype=re.dtype, device=re.device) for _ in range(2)]
    to_start = [torch.empty(rows, width, **wide) for _ in range(2)]
    sizes = (length, width, cut.steps, cut.chunks, *strides(*grads))
    summary = summaries(re, cut, reset, 4)
    if cut.chunks > 1:
        launch(kernels.reduce_back, re, cut, cut.chunks - 1, *lam, *grads, reset, mask, *summary, *sizes)
    finals = whole(grad_final_re), whole(grad_final_im)
    inputs = (*lam, *grads, *finals, re, im, whole(s_re), whole(s_im), reset, mask)
    launch(kernels.backward, re, cut, cut.chunks, *inputs, *summary, *to_lam.unbind(0), *to_b, *to_start, *sizes)
    grad_lam = [part.sum(0) for part in to_lam]  # one by one: what an operator returns must not share memory
    return grad_lam[0], grad_lam[1], to_b[0], to_b[1], to_start[0], to_start[1]
