"""`mamba2`, the Mamba-2 block (Dao and Gu, arXiv 2405.21060): its own projections around a state-space recurrence.

    z, xBC, dt = W_in u                       gate, what the convolution sees, step sizes
    x, B, C = silu(conv(xBC))
    dt = softplus(dt + b_dt);  A = -exp(A_log)
    y = ssd(x, dt, A, B, C) + D x
    out = W_out norm(y * silu(z))             RMS norm in groups

A state of (head width x state size) numbers a head is too large to keep for every token; a cache that takes steps
back runs the recurrence again instead.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .cache_hybridlm import HybridRecurrentLayer
from .cell_hybridlm import RECURRENT_LAYER, Cell, State, starting, wide
from .conv_hybridlm import ShortConv
from .recurrence_hybridlm import advance, convolve
from .ssd_hybridlm import ssd_scan

A_RANGE = (1.0, 16.0)
DT_RANGE, DT_FLOOR = (0.001, 0.1), 1e-4
"""Ranges of -A and of dt at the start, those of the authors."""


class SsdCell(Cell):
    """The recurrence with its own parameters. x is [x, B, C, dt] of the equations, side by side.

    State: `s`, (B, heads, head width, state size).
    """

    def __init__(self, config):
        super().__init__(config)
        self.inner, self.head_width = config.mamba_inner_size, config.mamba_d_head
        self.heads = self.inner // self.head_width
        self.groups, self.state_size = config.mamba_n_groups, config.mamba_d_state
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))

    def initial_state(self, rows: int, device: torch.device) -> State:
        return {"s": torch.zeros(rows, self.heads, self.head_width, self.state_size, device=device)}

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """x (B, T, inner + 2 groups * state size + heads). Emits (B, T, inner); the state after the last token alone,
        (B, 1, heads, head width, state size)."""
        shared = self.groups * self.state_size
        v, B, C, dt = wide(x).split([self.inner, shared, shared, self.heads], dim=-1)
        v = v.unflatten(-1, (self.heads, self.head_width))
        dt = F.softplus(dt + wide(self.dt_bias))
        B, C = (t.unflatten(-1, (self.groups, self.state_size)) for t in (B, C))
        start = state["s"].to(v.dtype)
        y, last = ssd_scan(v, dt, -torch.exp(wide(self.A_log)), B, C, start, reset=reset, mask=mask)
        y = y + wide(self.D).unsqueeze(1) * v
        return y.flatten(2).to(x.dtype), {"s": last.unsqueeze(1)}

    def reset_weights(self) -> None:
        """-A uniform in A_RANGE; softplus(dt_bias) log-uniform in DT_RANGE; D = 1."""
        init.copy_(self.A_log, torch.log(torch.empty(self.heads).uniform_(*A_RANGE)))
        init.ones_(self.D)
        low, high = math.log(DT_RANGE[0]), math.log(DT_RANGE[1])
        dt = torch.exp(torch.rand(self.heads) * (high - low) + low).clamp_min(DT_FLOOR)
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class GroupedRMSNorm(nn.Module):
    """RMS norm of y * silu(z), in groups of equal width: (B, T, inner) each."""

    def __init__(self, width: int, groups: int, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = (wide(y) * F.silu(wide(z))).unflatten(-1, (self.groups, -1))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.flatten(-2).to(y.dtype)

    def reset_weights(self) -> None:
        init.ones_(self.weight)


class Mamba2Mixer(nn.Module):
    """(B, T, D) -> (B, T, D). Its width is `mamba_expand` * D; heads of `mamba_d_head`, which share B and C in
    `mamba_n_groups` groups."""

    layer_type = RECURRENT_LAYER
    passes_state = True

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        inner, D = config.mamba_inner_size, config.hidden_size
        convolved = inner + 2 * config.mamba_n_groups * config.mamba_d_state
        self.cell = SsdCell(config)
        self.sizes = [inner, convolved, self.cell.heads]
        self.in_proj = nn.Linear(D, sum(self.sizes), bias=False)
        self.conv = ShortConv(convolved, config.conv_kernel) if config.conv_kernel > 0 else None
        self.norm = GroupedRMSNorm(inner, config.mamba_n_groups, config.rms_norm_eps)
        self.out_proj = starting(nn.Linear(inner, D, bias=False), scale=config.residual_scale)

    def forward(
        self, u: Tensor, mask: Tensor | None, reset: Tensor | None, cache: HybridRecurrentLayer | None
    ) -> Tensor:
        """mask, reset: (B, T) bool or None. The cache, if given, is read and moved on by T tokens."""
        z, xBC, dt = self.in_proj(u).split(self.sizes, dim=-1)
        xBC, window = convolve(self.conv, xBC, mask, reset, cache)
        y = advance([self.cell], torch.cat([F.silu(xBC), dt], dim=-1), window, mask, reset, cache)
        return self.out_proj(self.norm(y, z))
