"""`acmru`, the cumulative memory unit whose amplitude depends on the input and moves inside the scan (alpha-CMRU).

    alpha_t = W_alpha x_t + b_alpha
    s_t = s_{t-1} + z_t * alpha_t * S(c_t)                      h_t = s_t

The form is inferred from the published description of the cumulative unit (arXiv 2605.11855); the paper's own may
differ in detail.
"""

import torch
from torch import Tensor, nn

from .cell_hybridlm import State, starting, wide
from .memory_hybridlm import ThresholdCell
from .scan_hybridlm import linear_scan
from .surrogate_hybridlm import heaviside, sign


class AcmruCell(ThresholdCell):
    """State: `s`, a real number that starts at 0."""

    def __init__(self, config):
        super().__init__(config)
        self.amplitude = starting(nn.Linear(self.width, self.width), bias=config.amplitude_init)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        c, beta = self.drive(x, mask)
        step = heaviside(c.abs() - beta, self.slope) * wide(self.amplitude(x)) * sign(c, self.slope)
        s, _ = linear_scan(torch.ones_like(step), step, state["s"], reset=reset, mask=mask)
        return s.to(x.dtype), {"s": s}
