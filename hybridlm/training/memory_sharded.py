"""What a process holds, for a while, of weights and gradients that are dealt out (`parallel.kind: fsdp`).

    embedding, last norm, head     gathered in fp32 for the whole step, and so is their gradient
    layers                         two gathered at once, the one that runs and the next one, or, with
                                   parallel.reshard=false, all; linear maps in bf16 where the products are
    a layer's gradients            whole, and once more in fp32 while they are reduced to the parts

Counted by the largest layer, since the order of gathering is the device's.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from hybridlm.training.memory_trace import MemoryTrace, bytes_of
from hybridlm.training.sections import PretrainConfig

AT_ONCE = 2
"""Layers that are gathered at the same time."""


class Gathered(NamedTuple):
    """Bytes beside what the process holds."""

    forward: int
    """In a forward without gradients."""
    training: int
    """In a training step."""


def gather(config: PretrainConfig, model: Any, trace: MemoryTrace) -> Gathered:
    """What is gathered of `model` (fake tensors, its weights counted already), whose linear maps are put into the
    precision that they are gathered in: products then make no copies of them."""
    layers = model.model.layers
    inside = {id(parameter) for parameter in layers.parameters()}
    root = bytes_of(parameter for parameter in model.parameters() if id(parameter) not in inside)
    reduced = max(bytes_of(layer.parameters()) for layer in layers)  # in fp32
    if config.training.mixed_precision == "bf16":
        for module in layers.modules():
            if type(module) is nn.Linear:
                for name, weight in module.named_parameters(recurse=False):
                    trace.purpose = "gathered"
                    setattr(module, name, nn.Parameter(weight.detach().to(torch.bfloat16)))
                    trace.assign([getattr(module, name)], "gathered", 0.0)
    sizes = [bytes_of(layer.parameters()) for layer in layers]
    forward = root + (min(AT_ONCE, len(sizes)) * max(sizes) if config.parallel.reshard else sum(sizes))
    return Gathered(forward, forward + root + max(sizes) + reduced)
