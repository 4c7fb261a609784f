"""AdamW with two parameter groups.

| parameter | decayed |
|---|---|
| matrices and convolution kernels (ndim >= 2) | yes |
| vectors and scalars: biases, norms, amplitudes, decays (ndim < 2) | no |
| anything flagged `p._no_weight_decay = True` where it is made (recurrence parameters) | no |
| the input embedding, and with it a tied output projection | no: rare tokens would fade between occurrences |
| an untied output projection | yes |
"""

from typing import Any

import torch
from torch import nn

from hybridlm.training.sections import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups "decay" and "no_decay"; together they hold every trainable parameter exactly once."""
    embedding = model.get_input_embeddings().weight if hasattr(model, "get_input_embeddings") else None  # pyright: ignore[reportCallIssue]
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():  # a tied parameter comes once
        if not parameter.requires_grad:
            continue
        kept = parameter.ndim < 2 or parameter is embedding or getattr(parameter, "_no_weight_decay", False)
        (rest if kept else decay).append(parameter)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in decay + rest) == total, "parameter groups must hold every parameter once"
    groups = [
        {"params": decay, "weight_decay": weight_decay, "name": "decay"},
        {"params": rest, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the fused kernel where the device has one."""
    kind = next(model.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=kind in ("cpu", "cuda"),
    )
