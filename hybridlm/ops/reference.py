"""What is right: each scan as a loop over time, differentiated by autograd; but the states of `index_values` are
integers, and their gradient is a formula of its own.

Gradients of any order. Of a reset nothing is left before it, of padding nothing at all, also where it holds a NaN.
"""

import torch
from torch import Tensor

from hybridlm.model.surrogate_hybridlm import heaviside, sign

Planar = tuple[Tensor, Tensor]


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


def index_scan(
    drive: Tensor, initial_state: Tensor, *, reset: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """s_t = argmax_l drive_t[s_{t-1}, l]. drive (B, T, K, n, n), source before destination; initial_state (B, K).

    A reset starts at 0. The states (B, T, K), integers as initial_state. Source: as of
    `hybridlm.model.indexscan_hybridlm`.
    """
    state, states = initial_state, []
    for t in range(drive.shape[1]):
        before = state if reset is None else torch.where(reset[:, t, None], 0, state)
        after = _row(drive[:, t], before).argmax(-1).to(state.dtype)
        state = after if mask is None else torch.where(mask[:, t, None], after, state)
        states.append(state)
    return torch.stack(states, dim=1)


def index_scan_backward(
    grad: Tensor,
    drive: Tensor,
    initial_state: Tensor,
    *,
    temperature: float = 1.0,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The surrogate gradient of drive, where grad (B, T, K, n) is that of the one-hot states:

        lambda_t[s] = grad_t[s] + lambda_{t+1}[tau_{t+1}(s)]

    At the row j = s_{t-1} it is p (lambda_t - <p, lambda_t>) / nu, with p = softmax(drive_t[j] / nu) and nu the
    temperature; all other rows are 0.
    """
    states = index_scan(drive, initial_state, reset=reset, mask=mask)
    found, worth = torch.zeros_like(drive), torch.zeros_like(grad[:, 0])
    for t in range(drive.shape[1] - 1, -1, -1):
        worth = grad[:, t] + worth
        before = initial_state if t == 0 else states[:, t - 1]
        if reset is not None:
            before = torch.where(reset[:, t, None], 0, before)
        p = (_row(drive[:, t], before) / temperature).softmax(-1)
        here = p * (worth - (p * worth).sum(-1, keepdim=True)) / temperature
        if mask is not None:
            here = torch.where(mask[:, t, None, None], here, 0.0)
        for j in range(drive.shape[-1]):
            found[:, t, :, j] = torch.where((before == j).unsqueeze(-1), here, 0.0)
        earlier = worth.gather(-1, drive[:, t].argmax(-1))
        if reset is not None:  # nothing before it matters
            earlier = torch.where(reset[:, t, None, None], 0.0, earlier)
        worth = earlier if mask is None else torch.where(mask[:, t, None, None], earlier, worth)
    return found


def index_values(
    theta: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h_t = V[s_t] (B, T, K, d) and the states (B, T, K): `index_scan` on theta + bias + noise. h is NaN where one of
    the numbers that decided is."""
    drive = theta.to(torch.float64 if theta.dtype == torch.float64 else torch.float32)
    drive = drive if bias is None else drive + bias
    drive = drive if noise is None else drive + noise
    one_hot, states = _OneHot.apply(drive, initial_state, temperature, reset, mask)  # pyright: ignore[reportGeneralTypeIssues]
    return torch.einsum("btkn,knd->btkd", one_hot, values), states


class _OneHot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, drive, initial_state, temperature, reset, mask):
        ctx.options = {"temperature": temperature, "reset": reset, "mask": mask}
        ctx.save_for_backward(drive, initial_state)
        states = index_scan(drive, initial_state, reset=reset, mask=mask)
        ctx.mark_non_differentiable(states)
        one_hot = torch.nn.functional.one_hot(states.long(), drive.shape[-1]).to(drive.dtype)
        for t in range(drive.shape[1]):
            before = initial_state if t == 0 else states[:, t - 1]
            if reset is not None:
                before = torch.where(reset[:, t, None], 0, before)
            nan = _row(drive[:, t], before).isnan().any(-1)
            one_hot[:, t][nan if mask is None else nan & mask[:, t, None]] = torch.nan
        return one_hot, states

    @staticmethod
    def backward(ctx, grad, _):
        return index_scan_backward(grad, *ctx.saved_tensors, **ctx.options), None, None, None, None


def _row(drive: Tensor, state: Tensor) -> Tensor:
    """drive (B, K, n, n) at the source `state` (B, K): (B, K, n)."""
    return drive[torch.arange(len(state))[:, None], torch.arange(state.shape[1]), state.long()]
