"""What the processes of a run send one another in a training step: bytes that each sends, from its recipe alone.

    all-reduce of S bytes over n processes, in a ring       2 (n - 1) / n S
    all-gather to S bytes, reduce-scatter of S bytes          (n - 1) / n S

    ddp         all-reduce of the gradients in fp32, once a step
    fsdp        all-gather of the weights for each forward, and with parallel.reshard for each backward (linear maps of
                the layers in the precision of the products, the rest in fp32; what is outside the layers once);
                reduce-scatter of the gradients in fp32, once a step; between copies an all-reduce of each part of them
    sequence    for each layer, forward and backward: all-gather of factor and state, 2 numbers for each number of the
                state, in fp32, and of the last K - 1 inputs of its convolution, in the precision of the products; for
                a head of `nfsm` of n states n + 1 bytes forward, its map, and n numbers in fp32 backward

`scripts/bench_scaling.py` puts these numbers beside what goes over the loopback interface.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.cell_hybridlm import Cell
from hybridlm.model.cells_nfsm import NfsmCell
from hybridlm.model.conv_hybridlm import ShortConv
from hybridlm.training.arrangement import sharded_over
from hybridlm.training.flops import flops_per_token
from hybridlm.training.parallel import data_places
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.setup import micro_batch_size


@dataclass(frozen=True)
class Shape:
    """What of a model decides its traffic: numbers, not bytes."""

    parameters: int
    maps: int
    """In linear maps of layers."""
    layer_rest: int
    """In layers besides."""
    layers: int
    states: int
    """Numbers of the recurrent states of a sequence, over all layers; a complex one counts twice, a whole number of
    `nfsm` not at all."""
    windows: int
    """Inputs that the convolutions of the next part reach back to, over all layers, for a sequence."""
    flops: int
    """Of training, for a token."""
    heads: int = 0
    """Of `nfsm`, over all layers."""
    mapped: int = 0
    """States that those have together."""

    @property
    def root(self) -> int:
        """Parameters outside the layers."""
        return self.parameters - self.maps - self.layer_rest


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a step; what is 0 is not sent."""

    gather: float = 0.0
    """fsdp: weights."""
    scatter: float = 0.0
    """fsdp: gradients, within a copy of the model."""
    reduce: float = 0.0
    """Gradients: ddp, or between the copies of fsdp."""
    states: float = 0.0
    """sequence."""

    @property
    def total(self) -> float:
        return self.gather + self.scatter + self.reduce + self.states


def shape_of(config: PretrainConfig, vocabulary: int) -> Shape:
    """The recipe's model, without its weights."""
    with torch.device("meta"):
        model = HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=vocabulary))
    layers: Any = model.model.layers
    maps = sum(p.numel() for module in layers.modules() if type(module) is torch.nn.Linear for p in module.parameters())
    cells = [module for module in layers.modules() if isinstance(module, Cell)]
    automata = [cell for cell in cells if isinstance(cell, NfsmCell)]
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        maps=maps,
        layer_rest=sum(p.numel() for p in layers.parameters()) - maps,
        layers=len(layers),
        states=sum(state.numel() for cell in cells if cell not in automata for state in _initial(cell)),
        windows=sum(m.weight.shape[0] * (m.kernel - 1) for m in layers.modules() if isinstance(m, ShortConv)),
        flops=flops_per_token(model, config.data.sequence_length).training,
        heads=sum(cell.heads for cell in automata),
        mapped=sum(cell.heads * cell.states for cell in automata),
    )


def traffic(config: PretrainConfig, shape: Shape, processes: int) -> Traffic:
    """Of one optimizer step. Raises UserError where `processes` cannot be arranged as the recipe asks."""
    if processes == 1:
        return Traffic()
    micro = micro_batch_size(config, processes)
    places = data_places(config, processes)
    forwards = config.training.batch_size // (micro * places)
    products = 4 if config.training.mixed_precision == "no" else 2
    sent = _states(config, shape, micro, processes // places, products) * forwards
    if config.parallel.kind == "ddp":
        return Traffic(reduce=2 * _others(processes) * 4 * shape.parameters, states=sent)
    part = sharded_over(config, processes)
    layers = products * shape.maps + 4 * shape.layer_rest
    weights = (2 if config.parallel.reshard else 1) * layers + 4 * shape.root
    return Traffic(
        gather=_others(part) * weights * forwards,
        scatter=_others(part) * 4 * shape.parameters,
        reduce=2 * _others(processes // part) * 4 * shape.parameters / part,
        states=sent,
    )


def _states(config: PretrainConfig, shape: Shape, micro: int, parts: int, products: int) -> float:
    """Of a forward and its backward; the forward is run once more with gradient checkpointing."""
    forwards = 2 if config.training.gradient_checkpointing else 1
    once = 2 * 4 * shape.states + products * shape.windows
    return (parts - 1) * micro * ((forwards + 1) * once + forwards * (shape.mapped + shape.heads) + 4 * shape.mapped)


def _initial(cell: Cell) -> Iterable[torch.Tensor]:
    return cell.initial_state(1, torch.device("meta")).values()


def _others(count: int) -> float:
    """The part of a ring's data that is not one's own."""
    return (count - 1) / count
