"""`mingru`, the minimal gated recurrent unit (Feng et al., arXiv 2410.01201), in its plain form: a hard reset is exact.

z_t = sigmoid(W_z x_t + b_z)      h~_t = W_h x_t + b_h
s_t = (1 - z_t) * s_{t-1} + z_t * h~_t                      h_t = s_t
"""

from typing import Any

import torch
from torch import Tensor, nn

from .cell_hybridlm import Cell, State, wide
from .scan_hybridlm import linear_scan


class MingruCell(Cell):
    """State: `s`."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Linear(self.width, self.width)
        self.candidate = nn.Linear(self.width, self.width)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        logits = wide(self.gate(x))
        drive = torch.sigmoid(logits) * wide(self.candidate(x))
        s, _ = linear_scan(torch.sigmoid(-logits), drive, state["s"], reset=reset, mask=mask)
        return s.to(x.dtype), {"s": s}

    def record(self, step: Any, v: int, state: State) -> int:
        return step.ops.mingru(step.linear(v, self.gate), step.linear(v, self.candidate), state["s"])
