"""`fqbmru`, the first-quadrant bistable memory recurrent unit (Fyon et al., arXiv 2605.15216): states 0 and 1.

    u_t = ReLU(W_x x_t + b_x)                 a drive that is never negative
    s_t = 1 if u_t > beta_hi, 0 if u_t < beta_lo, else s_{t-1}          h_t = alpha * s_t

The thresholds 0 < beta_lo < beta_hi are fixed. As a scan: a_t = 1 where the unit holds, else 0; b_t = 1 where it is
set. Gradients pass the two comparisons as in the other memory units, through the surrogate of the step function. The
start of b_x, halfway between the thresholds, is ours: a third of the units is set and a third reset at each step.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cell_hybridlm import State, starting, wide
from .memory_hybridlm import MemoryCell
from .scan_hybridlm import linear_scan
from .surrogate_hybridlm import heaviside


class FqbmruCell(MemoryCell):
    """State: `s`, 0 or 1, that starts at 0."""

    finite = True

    def __init__(self, config):
        super().__init__(config)
        self.beta_lo, self.beta_hi = float(config.threshold_low), float(config.threshold_high)
        self.amplitude_init = config.amplitude_init
        self.drive = starting(nn.Linear(self.width, self.width), bias=(self.beta_lo + self.beta_hi) / 2)
        self.alpha = nn.Parameter(torch.empty(self.width))

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        u = torch.relu(wide(self.drive(x)))
        set_ = 1 - heaviside(self.beta_hi - u, self.slope)  # strictly above
        unset = 1 - heaviside(u - self.beta_lo, self.slope)  # strictly below
        if self.notes_writes:
            self.note_writes(set_ + unset, mask)
        b = torch.where(u.isnan(), u, set_)  # no comparison holds for a NaN; it must not look like a state
        s, _ = linear_scan((1 - set_) * (1 - unset), b, state["s"], reset=reset, mask=mask)
        return (wide(self.alpha) * s).to(x.dtype), {"s": s}

    def reset_weights(self) -> None:
        init.constant_(self.alpha, self.amplitude_init)
