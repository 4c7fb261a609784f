"""The optimizer: AdamW, or Muon and AdamW, by parameter group.

| parameter | group | decayed | `optimizer.kind: muon` |
|---|---|---|---|
| matrices (ndim = 2) of projections, gates, attention and MLP | decay | yes | group muon |
| convolution kernels, block-diagonal matrices (ndim = 3) | decay | yes | AdamW |
| vectors and scalars: biases, norms, amplitudes, decays (ndim < 2) | no_decay | no | AdamW |
| anything flagged `p._no_weight_decay = True` where it is made (recurrence parameters) | no_decay | no | AdamW |
| the input embedding, and with it a tied output projection | no_decay | no: rare tokens would fade | AdamW |
| an untied output projection | decay | yes | AdamW |

Muon is for maps from one hidden vector to another; a row of an embedding or of an output projection is a vector of its
own, and a channel's convolution taps are no matrix.
"""

from typing import Any

import torch
from torch import nn

from hybridlm.errors import UserError
from hybridlm.model.conv_hybridlm import ShortConv
from hybridlm.training.muon import MuonAdamW
from hybridlm.training.sections import MuonConfig, OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float, muon: float | None = None) -> list[dict[str, Any]]:
    """The groups "muon", "decay" and "no_decay"; together they hold every trainable parameter exactly once.

    muon: weight decay of the hidden matrices, in a group of their own; None: they are in "decay". Empty groups are left
    out.
    """
    embedding, head = _weight_of(model, "get_input_embeddings"), _weight_of(model, "get_output_embeddings")
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, ShortConv)}
    hidden: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():  # a tied parameter comes once
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or parameter is embedding or getattr(parameter, "_no_weight_decay", False):
            rest.append(parameter)
        elif muon is None or parameter.ndim > 2 or parameter is head or id(parameter) in kernels:
            decay.append(parameter)
        else:
            hidden.append(parameter)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in hidden + decay + rest) == total, "parameter groups must hold every parameter once"
    groups = [
        {"params": hidden, "weight_decay": muon, "name": "muon"},
        {"params": decay, "weight_decay": weight_decay, "name": "decay"},
        {"params": rest, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over `parameter_groups`; AdamW with its fused kernel where the device has one."""
    if config.kind == "adamw":
        return _adamw(model, parameter_groups(model, config.weight_decay), config)
    own = config.muon or MuonConfig()
    decay = config.weight_decay if own.weight_decay is None else own.weight_decay
    groups = parameter_groups(model, config.weight_decay, muon=decay)
    if not any(group["name"] == "muon" for group in groups):
        raise UserError("optimizer.kind='muon': the model has no hidden matrix to train. Use optimizer.kind=adamw.")
    muon = torch.optim.Muon(
        [group for group in groups if group["name"] == "muon"],
        lr=config.lr,
        momentum=own.momentum,
        ns_steps=own.ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAdamW(muon, _adamw(model, [group for group in groups if group["name"] != "muon"], config))


def _adamw(model: nn.Module, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    kind = next(model.parameters()).device.type
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=kind in ("cpu", "cuda"))


def _weight_of(model: nn.Module, getter: str) -> nn.Parameter | None:
    """The weight of the embedding that `getter` finds, where the model has both."""
    module = getattr(model, getter, lambda: None)()
    return getattr(module, "weight", None)
