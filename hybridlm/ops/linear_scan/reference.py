"""The definition of `linear_scan`: a loop over time, differentiated by autograd."""

import torch
from torch import Tensor


def linear_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s_t = a_t s_{t-1} + b_t. a, b (B, T, N); mask and reset (B, T) bool. States (B, T, N) and the final state (B,
    N)."""
    dtype = torch.float64 if b.dtype == torch.float64 else torch.float32
    state = torch.zeros_like(b[:, 0], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = []
    for t in range(b.shape[1]):
        before = state
        if reset is not None:
            before = torch.where(reset[:, t, None], torch.zeros_like(before), before)
        after = a[:, t].to(dtype) * before + b[:, t].to(dtype)
        state = after if mask is None else torch.where(mask[:, t, None], after, state)
        states.append(state)
    return torch.stack(states, dim=1).to(b.dtype), state
