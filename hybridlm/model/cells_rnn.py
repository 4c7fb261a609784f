"""`gru` and `lstm`: torch's own recurrent units, to compare with on memory tasks.

Their state enters the gates through a matrix, so there is no scan: they run one step after the other, in torch's fused
loop where no row has padding or a second document, else step by step.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cell_hybridlm import Cell, State, wide
from .stepwise_hybridlm import exporting, stepwise

_Step = tuple[State, State]
"""The new states, twice. Named here, since dynamo does not trace a subscript in the signature of an inner function."""


class _TorchCell(Cell):
    """Parameters as in torch.nn.GRU and LSTM of one layer: weight_ih, weight_hh (gates * N, N), biases (gates * N)."""

    passes_state = False
    gates: int

    def __init__(self, config):
        super().__init__(config)
        N = self.width
        self.weight_ih = nn.Parameter(torch.empty(self.gates * N, N))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * N, N))
        self.bias_ih = nn.Parameter(torch.empty(self.gates * N))
        self.bias_hh = nn.Parameter(torch.empty(self.gates * N))

    @abstractmethod
    def step(self, x: Tensor, state: State, weights: list[Tensor]) -> State:
        """One token: x (B, N), states (B, N)."""

    @abstractmethod
    def fused(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, State]:
        """All tokens at once: h after each, (B, T, N), and the states as `Cell.forward` returns them."""

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        v = wide(x)
        state = {name: s.to(v.dtype) for name, s in state.items()}
        weights = [wide(p) for p in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)]
        if mask is None and reset is None and x.shape[1] > 1 and not torch.compiler.is_compiling():
            h, states = self.fused(v, state, weights)
        else:
            states = self._loop(v, state, weights, mask, reset)
            h = states["h"]
        return h.to(x.dtype), states

    def _loop(self, v: Tensor, state: State, weights: list[Tensor], mask: Tensor | None, reset: Tensor | None) -> State:
        """The states after every token, (B, T, N) each."""
        starts = reset if reset is None or mask is None else reset & mask
        flags = {"starts": starts, "mask": mask}
        inputs = {"v": v} | {name: flag.unsqueeze(2) for name, flag in flags.items() if flag is not None}

        def step(state: State, now: State) -> _Step:
            before = state
            if "starts" in now:
                before = {name: s.masked_fill(now["starts"], 0.0) for name, s in state.items()}
            new = self.step(now["v"], before, weights)
            if "mask" in now:
                new = {name: torch.where(now["mask"], s, state[name]) for name, s in new.items()}
            return new, new

        if exporting():
            return stepwise(step, state, inputs)[1]
        steps = []
        for t in range(v.shape[1]):
            state, _ = step(state, {name: x[:, t] for name, x in inputs.items()})
            steps.append(state)
        return {name: torch.stack([states[name] for states in steps], 1) for name in self.state_names}

    def reset_weights(self) -> None:
        """Uniform within 1 / sqrt(N), as torch starts them."""
        bound = 1 / math.sqrt(self.width)
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            init.uniform_(parameter, -bound, bound)


class GruCell(_TorchCell):
    """State: `h`. Equations as in torch.nn.GRU (Cho et al., arXiv 1406.1078)."""

    state_names = ("h",)
    gates = 3

    def step(self, x: Tensor, state: State, weights: list[Tensor]) -> State:
        return {"h": torch.gru_cell(x, state["h"], *weights)}

    def fused(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, State]:
        h, _ = torch.gru(x, state["h"].unsqueeze(0), weights, True, 1, 0.0, False, False, True)
        return h, {"h": h}


class LstmCell(_TorchCell):
    """States: `h` and `c`. Equations as in torch.nn.LSTM (Hochreiter and Schmidhuber, 1997, with forget gates)."""

    state_names = ("h", "c")
    gates = 4

    def step(self, x: Tensor, state: State, weights: list[Tensor]) -> State:
        h, c = torch.lstm_cell(x, (state["h"], state["c"]), *weights)
        return {"h": h, "c": c}

    def fused(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, State]:
        """torch's loop tells c after the last token alone."""
        start = (state["h"].unsqueeze(0), state["c"].unsqueeze(0))
        h, last_h, last_c = torch.lstm(x, start, weights, True, 1, 0.0, False, False, True)
        return h, {"h": last_h.transpose(0, 1), "c": last_c.transpose(0, 1)}
