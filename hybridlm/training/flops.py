"""Operations of training, for each token: the model's own, so that runs of any implementation compare.

    products    2 * (weights that a token is multiplied with): every matrix, the output projection too; 0 for a lookup
    attention   4 * width * (tokens that a token may see): T, or the window; the half that causality masks is counted
    forward     products + attention
    training    3 * forward: the backward multiplies twice, for the gradients of inputs and of weights

This is what the field means by model FLOPs (PaLM, arXiv 2204.02311, appendix B). What gradient checkpointing computes
again is not in it. `scans` stands apart: elementwise work, bound by memory and not by the rate of products. It is 2
operations for each number of the state (8 for a complex one), for each logit of `nfsm`, and three times that for
training; of `mamba2`, whose scan consists of products, those of its chunks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridlm.model.cell_hybridlm import Cell
from hybridlm.model.cells_lru import LruCell
from hybridlm.model.cells_nfsm import NfsmCell
from hybridlm.model.conv_hybridlm import ShortConv
from hybridlm.model.mamba2_hybridlm import SsdCell
from hybridlm.model.mixers_hybridlm import ATTENTION
from hybridlm.model.ssd_hybridlm import CHUNK


@dataclass
class Flops:
    """Operations of a forward for one token."""

    products: int
    attention: int
    scans: int

    @property
    def forward(self) -> int:
        return self.products + self.attention

    @property
    def training(self) -> int:
        """Forward and backward, without the scans."""
        return 3 * self.forward

    @property
    def training_scans(self) -> int:
        return 3 * self.scans


def flops_per_token(model: Any, length: int) -> Flops:
    """model: a HybridLMForCausalLM, on any device, the meta device too. length: tokens in a sequence (T)."""
    config = model.config
    products = 2 * sum(weight.numel() for module in model.model.modules() for weight in _matrices(module))
    products += 2 * model.lm_head.weight.numel()  # also where it is the embedding
    seen = {"attention": length, "sliding_attention": min(length, config.sliding_window)}
    attention = sum(4 * config.hidden_size * seen[block] for block in config.block_types if block in ATTENTION)
    scans = sum(_scan(module, length) for module in model.modules() if isinstance(module, Cell))
    return Flops(products, attention, scans)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The module's own parameters that a token is multiplied with."""
    if isinstance(module, (nn.Embedding, ShortConv, NfsmCell)):  # a cell's values are looked up
        return []
    own = module.named_parameters(recurse=False)
    return [parameter for name, parameter in own if parameter.ndim >= 2 and "bias" not in name]


def _scan(cell: Cell, length: int) -> int:
    if isinstance(cell, SsdCell):
        chunk = min(CHUNK, length)
        inside = 2 * chunk * (cell.groups * cell.state_size + cell.inner)
        return inside + 4 * cell.inner * cell.state_size
    if isinstance(cell, NfsmCell):
        return 2 * cell.transition_bias.numel()
    numbers = sum(state.numel() for state in cell.initial_state(1, torch.device("meta")).values())
    return (4 if isinstance(cell, LruCell) else 2) * numbers
