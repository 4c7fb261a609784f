"""The definition of `lru_scan`: a loop over time in complex arithmetic, differentiated by autograd."""

import torch
from torch import Tensor

Planar = tuple[Tensor, Tensor]


def lru_scan(
    decay: Planar,
    b: Planar,
    initial_state: Planar | None = None,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Planar, Planar]:
    """s_t = lambda s_{t-1} + b_t. decay (re, im), each (N,); b (re, im), each (B, T, N). States and final state,
    planar."""
    dtype = torch.float64 if b[0].dtype == torch.float64 else torch.float32
    lam = torch.complex(decay[0].to(dtype), decay[1].to(dtype))
    drive = torch.complex(b[0].to(dtype), b[1].to(dtype))
    if initial_state is None:
        state = torch.zeros_like(drive[:, 0])
    else:
        state = torch.complex(initial_state[0].to(dtype), initial_state[1].to(dtype))
    states = []
    for t in range(drive.shape[1]):
        before = state
        if reset is not None:
            before = torch.where(reset[:, t, None], torch.zeros_like(before), before)
        after = lam * before + drive[:, t]
        state = after if mask is None else torch.where(mask[:, t, None], after, state)
        states.append(state)
    trajectory = torch.stack(states, dim=1)
    return (trajectory.real.to(b[0].dtype), trajectory.imag.to(b[1].dtype)), (state.real, state.imag)
