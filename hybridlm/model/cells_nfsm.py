"""`nfsm`, finite-state heads: K small automata whose transitions the input chooses (Liège, 2026).

    Theta_t = W x_t + b                    per head (n, n): from source j to destination l
    s_t = argmax_l Theta_t[s_{t-1}, l]     one of n states
    h_t = V[s_t]                           the learned value of the state; heads stand side by side

The map behind it is the shell's output projection. Any automaton of n states is one head that reads its letters, at
every length; n = 2 holds the flip-flop of `bmru`. Source: *Length-independent state tracking under a parallel scan*.

In training Gumbel noise is added, argmax of Theta + nu * exploration * G, which tries destinations that are not the
best yet. exploration belongs to the training schedule, as epsilon of `bmru` does: it is no part of the weights, and 0
in a model that was just made or loaded. The gradient is that of `indexscan_hybridlm`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cell_hybridlm import Cell, Otherwise, State, starting
from .indexscan_hybridlm import index_scan


class NfsmCell(Cell):
    """State: `s` (B, K) uint8, one number a head. s_0 is 0, which is no restriction: names of states mean nothing."""

    finite = True

    def __init__(self, config):
        super().__init__(config)
        K, n = config.nfsm_heads, config.nfsm_states
        self.heads, self.states, self.temperature = K, n, float(config.nfsm_temperature)
        self.exploration = 0.0
        """Scale of the noise: 1 as published, 0 for none."""
        self.transition = starting(nn.Linear(self.width, K * n * n, bias=False), scale=0.3)
        self.transition_bias = nn.Parameter(torch.empty(K, n, n))
        self.values = nn.Parameter(torch.empty(K, n, self.width // K))
        for own in (self.transition_bias, self.values):
            own._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    def initial_state(self, rows: int, device: torch.device) -> State:
        return {"s": torch.zeros(rows, self.heads, device=device, dtype=torch.uint8)}

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        theta = self.transition(x).unflatten(-1, self.transition_bias.shape)
        noise = None
        if self.exploration > 0:
            noise = _gumbel_like(theta).mul_(self.exploration * self.temperature)
        h, s = index_scan(
            theta,
            self.values,
            state["s"],
            bias=self.transition_bias,
            noise=noise,
            temperature=self.temperature,
            reset=reset,
            mask=mask,
        )
        return h.flatten(2).to(x.dtype), {"s": s}

    def record(self, step: Any, v: int, state: State) -> int:
        """Computes n outputs of the map for each head, of n^2."""
        if self.exploration > 0:
            raise Otherwise
        weight, bias = step.map(self.transition)
        if bias is not None:
            raise Otherwise
        return step.ops.index(v, weight, step.own(self.transition_bias), step.own(self.values), state["s"])

    def reset_weights(self) -> None:
        """Bias 0, values normal; W starts at 0.3 of LeCun's deviation.

        So each input starts with a random map of its own, in which staying is as likely as any other move. W is small
        since p should be soft: a row then learns about all destinations, and its best one changes within few updates.
        S3 at LeCun's scale takes about twice the steps, or is not learned.
        """
        init.zeros_(self.transition_bias)
        init.normal_(self.values)


def _gumbel_like(x: Tensor) -> Tensor:
    """Standard Gumbel noise, -log(-log u), drawn from torch's default generator of x's device, in fp32 or fp64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.rand_like(x, dtype=dtype).log_().neg_().log_().neg_()
