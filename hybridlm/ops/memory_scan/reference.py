"""The definition of `memory_scan`: a loop over time, built from the two surrogate step functions and nothing else."""

import torch
from torch import Tensor

from hybridlm.model.surrogate_hybridlm import heaviside, sign


def memory_scan(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    slope: float = 1.0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s_t = z_t (S(c_t) + epsilon s_{t-1}) + (1 - z_t) s_{t-1} with z_t = H(|c_t| - beta_t) (arXiv 2601.09495).

    c, beta (B, T, N); reset_state (N,). States (B, T, N) in c's dtype and the final state (B, N).
    """
    dtype = torch.float64 if c.dtype == torch.float64 else torch.float32
    state = torch.zeros_like(c[:, 0], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    fresh = torch.zeros_like(state) if reset_state is None else reset_state.to(dtype).expand_as(state)
    states = []
    for t in range(c.shape[1]):
        before = state if reset is None else torch.where(reset[:, t, None], fresh, state)
        drive = c[:, t].to(dtype)
        z = heaviside(drive.abs() - beta[:, t].to(dtype), slope)
        after = z * (sign(drive, slope) + epsilon * before) + (1 - z) * before
        state = after if mask is None else torch.where(mask[:, t, None], after, state)
        states.append(state)
    return torch.stack(states, dim=1).to(c.dtype), state
