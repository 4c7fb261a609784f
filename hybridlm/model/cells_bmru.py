"""`bmru` and `cmru`, the bistable and the cumulative memory recurrent unit (arXiv 2601.09495 and 2605.11855).

    s_t = z_t * (S(c_t) + epsilon s_{t-1}) + (1 - z_t) * s_{t-1}         h_t = alpha * s_t

with candidate c, threshold beta and z = H(|c| - beta) of `ThresholdCell`. At epsilon = 0 the state is +-1 and a hold
keeps it for ever, bit for bit; a write blocks the gradient. At epsilon = 1 the state is a counter and the gradient
through time is always 1. A `bmru` is trained from epsilon = 1 to 0; epsilon belongs to the training schedule, is no
part of the weights, and is 0 in a model that was just made or loaded.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cell_hybridlm import Otherwise, State, wide
from .memory_hybridlm import ThresholdCell
from .scan_hybridlm import memory_scan
from .surrogate_hybridlm import sign


class _ScannedMemoryCell(ThresholdCell):
    def __init__(self, config):
        super().__init__(config)
        self.amplitude_init = config.amplitude_init
        self.alpha = nn.Parameter(torch.empty(self.width))

    def start(self) -> Tensor | None:
        """s_0 of a document, (N,) fp32; None: zeros."""
        return None

    def initial_state(self, rows: int, device: torch.device) -> State:
        start = self.start()
        return super().initial_state(rows, device) if start is None else {"s": start.expand(rows, -1)}

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        c, beta = self.drive(x, mask)
        s, _ = memory_scan(
            c,
            beta,
            state["s"],
            epsilon=self.epsilon,
            slope=self.slope,
            reset=reset,
            reset_state=None if reset is None else self.start(),
            mask=mask,
        )
        return (wide(self.alpha) * s).to(x.dtype), {"s": s}

    def record(self, step: Any, v: int, state: State) -> int:
        if self.notes_writes:
            raise Otherwise
        c, threshold = step.linear(v, self.candidate), step.linear(v, self.threshold)
        return step.ops.memory(c, threshold, step.own(self.alpha), state["s"], self.epsilon)

    def reset_weights(self) -> None:
        init.constant_(self.alpha, self.amplitude_init)


class BmruCell(_ScannedMemoryCell):
    """State: `s`, +-1 once epsilon is 0. s_0 is +-1: drawn once and kept as a buffer, or learned through S."""

    finite = anneals = True
    record = _ScannedMemoryCell.record

    def __init__(self, config):
        super().__init__(config)
        self.epsilon = 0.0
        if config.learn_initial_state:
            self.s0 = nn.Parameter(torch.empty(self.width))
        else:
            self.register_buffer("s0", torch.empty(self.width))

    def start(self) -> Tensor:
        return sign(wide(self.s0), self.slope)

    def reset_weights(self) -> None:
        super().reset_weights()
        init.copy_(self.s0, torch.randint(0, 2, (self.width,)) * 2.0 - 1.0)


class CmruCell(_ScannedMemoryCell):
    """State: `s`, an integer that starts at 0; exact in fp32 while |s| < 2^24."""

    record = _ScannedMemoryCell.record

    def __init__(self, config):
        super().__init__(config)
        self.epsilon = 1.0
