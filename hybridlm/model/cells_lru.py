"""`lru`, the linear recurrent unit: complex, diagonal, the same decay at every step (Orvieto et al., arXiv 2303.06349).

    lambda = exp(-exp(nu) + i exp(theta))
    s_t = lambda * s_{t-1} + exp(gamma) * (B x_t)          complex, N channels
    h_t = Re(C s_t) + d * x_t

All parameters are real: B and C are stored as stacked real and imaginary parts (`C` with its imaginary part negated,
so that Re(C s) is one matrix product).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cell_hybridlm import Cell, State, starting, wide
from .scan_hybridlm import lru_scan


class LruCell(Cell):
    """State: the real and imaginary parts, `re` and `im`."""

    state_names = ("re", "im")

    def __init__(self, config):
        super().__init__(config)
        N = self.width
        self.r_min, self.r_max, self.phase_max = config.decay_min, config.decay_max, config.phase_max
        self.nu_log = nn.Parameter(torch.empty(N))
        self.theta_log = nn.Parameter(torch.empty(N))
        self.gamma_log = nn.Parameter(torch.empty(N))
        self.B = starting(nn.Linear(N, 2 * N, bias=False), std=1 / math.sqrt(2 * N))
        self.C = starting(nn.Linear(2 * N, N, bias=False), std=1 / math.sqrt(N))
        self.d = nn.Parameter(torch.empty(N))

    def decay(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of lambda, (N,) each, fp32."""
        modulus, phase = torch.exp(-torch.exp(wide(self.nu_log))), torch.exp(wide(self.theta_log))
        return modulus * torch.cos(phase), modulus * torch.sin(phase)

    def gain(self) -> Tensor:
        """exp(gamma) of the real parts, then of the imaginary ones, (2 N,), fp32."""
        return torch.exp(wide(self.gamma_log)).repeat(2)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        drive = wide(self.B(x)) * self.gain()
        (re, im), _ = lru_scan(
            self.decay(),
            (drive[..., : self.width], drive[..., self.width :]),
            (state["re"], state["im"]),
            reset=reset,
            mask=mask,
        )
        h = self.C(torch.cat([re, im], dim=-1).to(x.dtype)) + self.d.to(x.dtype) * x
        return h, {"re": re, "im": im}

    def record(self, step: Any, v: int, state: State) -> int:
        for weight in (self.nu_log, self.theta_log, self.gamma_log):
            step.own(weight)
        both = step.ops.lru(step.linear(v, self.B), self.decay(), self.gain(), state["re"], state["im"])
        return step.ops.add_scaled(step.linear(both, self.C), v, step.own(self.d))

    def reset_weights(self) -> None:
        """|lambda|^2 uniform in [r_min^2, r_max^2], phase uniform in [0, phase_max], gamma normalises the state's
        variance."""
        u = torch.rand(2, self.width).clamp_min(1e-6)
        modulus = torch.sqrt(u[0] * (self.r_max**2 - self.r_min**2) + self.r_min**2)
        init.copy_(self.nu_log, torch.log(-torch.log(modulus)))
        init.copy_(self.theta_log, torch.log(self.phase_max * u[1]))
        init.copy_(self.gamma_log, 0.5 * torch.log1p(-(modulus**2)))
        init.normal_(self.d)
