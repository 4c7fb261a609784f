"""`rglru`, the real-gated linear recurrent unit of Griffin (De et al., arXiv 2402.19427).

r = sigmoid(W_a x + b_a)      i = sigmoid(W_x x + b_x)      block-diagonal over heads
log a = -8 r softplus(p)
s_t = a * s_{t-1} + sqrt(1 - a^2) * (i * x)                 h_t = s_t
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .cell_hybridlm import Cell, State, lecun_normal_, wide
from .fused_hybridlm import rglru_gates
from .scan_hybridlm import linear_scan


class RglruCell(Cell):
    """State: `s`."""

    def __init__(self, config):
        super().__init__(config)
        self.heads = config.num_attention_heads
        self.decay_min, self.decay_max = config.decay_min, config.decay_max
        block = self.width // self.heads
        # Both gates in one product: W_a in the first half of the outputs, W_x in the second.
        self.gate_weight = nn.Parameter(torch.empty(self.heads, block, 2 * block))
        self.gate_bias = nn.Parameter(torch.empty(self.heads, 2 * block))
        self.p = nn.Parameter(torch.empty(self.width))
        self.gate_bias._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        rows = x.reshape(-1, self.heads, self.width // self.heads).transpose(0, 1)
        pre = rows @ self.gate_weight.to(x.dtype)
        a, b = rglru_gates(pre, self.gate_bias, x, F.softplus(wide(self.p)))
        s, _ = linear_scan(a, b, state["s"], reset=reset, mask=mask)
        return s.to(x.dtype), {"s": s}

    def record(self, step: Any, v: int, state: State) -> int:
        pre = step.ops.heads(v, step.own(self.gate_weight))
        return step.ops.rglru(pre, step.own(self.gate_bias), v, F.softplus(wide(step.own(self.p))), state["s"])

    def reset_weights(self) -> None:
        """exp(-softplus(p)) is spread over [decay_min, decay_max], its square uniformly (as published code does)."""
        lecun_normal_(self.gate_weight, fan_in=self.width // self.heads)
        init.zeros_(self.gate_bias)
        square = torch.rand(self.width) * (self.decay_max**2 - self.decay_min**2) + self.decay_min**2
        init.copy_(self.p, torch.log(torch.expm1(-0.5 * torch.log(square))))
