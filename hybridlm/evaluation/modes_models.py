"""The models of the table of modes: small ones of this package and of transformers, all started alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from hybridlm import HybridLMConfig, HybridLMForCausalLM

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def _hybridlm(pattern: str) -> nn.Module:
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, threshold_init=0.4, **HEADS, **COMMON))


def _mamba2() -> nn.Module:
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}
    return Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=2, **sizes, **COMMON))


def _falcon_mamba() -> nn.Module:
    return FalconMambaForCausalLM(FalconMambaConfig(num_hidden_layers=2, state_size=8, **COMMON))


def _recurrent_gemma() -> nn.Module:
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(attention_window_size=32, **sizes, **COMMON))


def _qwen3_next() -> nn.Module:
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64, "head_dim": 8, "linear_num_value_heads": 4}
    kinds = {"layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0, 1]}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**linear, **sizes, **kinds, **HEADS, **COMMON))


def _lfm2() -> nn.Module:
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64, "layer_types": ["conv", "full_attention"]}
    return Lfm2ForCausalLM(Lfm2Config(**sizes, **HEADS, **COMMON))


OURS: dict[str, Callable[[], nn.Module]] = {
    "hybridlm `rglru bmru`": lambda: _hybridlm("rglru bmru"),
    "hybridlm `rglru bmru attention`": lambda: _hybridlm("rglru bmru attention"),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "Mamba2": _mamba2,
    "FalconMamba": _falcon_mamba,
    "RecurrentGemma": _recurrent_gemma,
    "Qwen3-Next": _qwen3_next,
    "LFM2": _lfm2,
}
"""Columns of the table; LFM2 has short convolutions only beside its attention, no recurrence."""


def build(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """A model in evaluation mode. Every map starts with variance 1 / fan in and every vector is moved a little, so that
    nothing is 0 or symmetric; what sets time constants stays as the model starts it."""
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in _TIME_CONSTANTS:
                continue
            module = model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.Embedding):
                parameter.normal_(std=0.2)  # small beside what the layers add
                if module.padding_idx is not None:
                    parameter[module.padding_idx] = 0
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


_TIME_CONSTANTS = {"A_log", "D", "dt_bias", "recurrent_param", "p"}
