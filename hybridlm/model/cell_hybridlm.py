"""What every recurrent cell is: one function (inputs, state, mask, reset) -> (outputs, states).

Training, prefill and a decode step (T = 1) are the same call. A cell says which tensors its state consists of; the
cache carries them without knowing the cell. The recurrence runs in fp32 whatever the model's dtype (fp64 in an
fp64 model).
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

RECURRENT_LAYER = "hybridlm_linear_attention"
"""Name of a recurrent layer in `layer_types`. Tools that look for "linear_attention" in it treat it as one."""

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""transformers' names of attention layers in `layer_types`."""

State = dict[str, Tensor]


class Otherwise(Exception):
    """A decode step holds something that the kernels do not know: the modules must run."""


class Cell(nn.Module, ABC):
    """A recurrence of width N on inputs of width N.

    Subclasses give `state_names`, `forward`, and `reset_weights` where a parameter does not start as a plain linear
    map does.
    """

    state_names: tuple[str, ...] = ("s",)
    """One tensor each, (B, N) where a cell does not say otherwise, fp32."""

    passes_state = True
    """Whether its sequences can be split over processes: its state enters through the scans alone."""

    finite = False
    """Whether its state is one of finitely many once epsilon is 0, as that of a finite automaton."""

    anneals = False
    """Whether epsilon is a training schedule of this cell, rather than a constant."""

    def __init__(self, config):
        super().__init__()
        self.width = config.recurrence_size

    def initial_state(self, rows: int, device: torch.device) -> State:
        """s_0 for `rows` sequences: zeros, where a cell does not say otherwise."""
        return {name: torch.zeros(rows, self.width, device=device) for name in self.state_names}

    @abstractmethod
    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """x (B, T, N); state: (B, N) each; mask, reset: (B, T) bool or None, as in the scans.

        Returns what the cell emits, (B, T, N) in x's dtype, and its states after every token, (B, T, N) each, fp32; or
        after the last one alone, (B, 1, ...), where the others are not at hand.
        """

    def record(self, step: Any, v: int, state: State) -> int:
        """A decode step on v, recorded in a `DecodeStep`: what the cell emits; its state is moved on in place.

        Raises Otherwise, as here, where there are no such operations. A class that does not define it has none, even if
        it inherits from one that does.
        """
        raise Otherwise

    def reset_weights(self) -> None:
        """Fills the parameters that the cell owns itself, through `transformers.initialization`; see `starting` for
        its maps."""


def wide(x: Tensor) -> Tensor:
    """x in the dtype of the recurrence: fp32, or fp64 where x already is."""
    return x if x.dtype == torch.float64 else x.float()


def starting(linear: nn.Linear, *, std: float | None = None, scale: float = 1.0, bias: float = 0.0) -> nn.Linear:
    """Marks how a linear map starts: normal with deviation `std`, or LeCun's times `scale`, and a constant bias.

    Said where the map is made, since transformers starts every module that owns parameters by itself, and no other.
    """
    linear.start = {"std": std, "scale": scale, "bias": bias}  # pyright: ignore[reportArgumentType]
    return linear


def start_linear_(linear: nn.Linear) -> None:
    """Fills a linear map as `starting` said; LeCun-normal with bias 0 where it said nothing."""
    start = getattr(linear, "start", {"std": None, "scale": 1.0, "bias": 0.0})
    if start["std"] is not None:
        init.normal_(linear.weight, std=start["std"])
    else:
        lecun_normal_(linear.weight, linear.in_features, start["scale"])
    if linear.bias is not None:
        init.constant_(linear.bias, start["bias"])


def lecun_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Normal with standard deviation scale / sqrt(fan_in)."""
    init.normal_(weight, std=scale / math.sqrt(fan_in))
