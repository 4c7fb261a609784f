"""A Transformer of a model's size: a stack of `attention`, of the same width, vocabulary and number of parameters.

Its weights are random: neither time nor memory of a step depends on their values. Every layer sees all tokens, since a
window would hold its memory constant.
"""

from __future__ import annotations

from typing import Any

import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.bench.peers import STEPS, TOLERANCE, Family, fit_family
from hybridlm.errors import UserError

_LEAVE_OUT = "Give a model to compare with by --peer, or leave it out by --no-peer."


def transformer_like(config: HybridLMConfig, parameters: int, positions: int) -> HybridLMConfig:
    """The configuration of a Transformer with so many parameters, up to 3 %, otherwise like that of `config`.

    Heads are as many as `config` has, or fewer where they do not divide its width; keys and values are grouped as
    there. positions: what its max_position_embeddings is set to; RoPE has no limit of its own. Raises UserError where
    no depth and width of an MLP comes that near.
    """
    width, (heads, groups) = config.hidden_size, _heads(config)
    common: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": positions,
    }

    def build(_width: int, layers: int, mlp: int, vocabulary: int) -> HybridLMForCausalLM:
        sizes = {"pattern": f"attention*{layers}", "intermediate_size": mlp, "vocab_size": vocabulary}
        return HybridLMForCausalLM(HybridLMConfig(**common, **sizes))

    size = fit_family(Family("attention", build), parameters, [width], config.vocab_size, (*STEPS, 1))
    if size is None:
        raise UserError(
            f"hidden_size={width}: no stack of attention of this width and a vocabulary of {config.vocab_size:,} has "
            f"{parameters:,} parameters, up to {TOLERANCE:.0%}. {_LEAVE_OUT}"
        )
    with torch.device("meta"):
        found = build(width, size.layers, size.mlp, size.vocabulary).config
    found.dtype = config.dtype
    return found


def _heads(config: HybridLMConfig) -> tuple[int, int]:
    """Heads, and those of keys and values."""
    width, most = config.hidden_size, config.num_attention_heads
    heads = next((count for count in range(most, 0, -1) if width % (2 * count) == 0), None)
    if heads is None:
        raise UserError(f"hidden_size={width}: RoPE needs heads of an even width, so no stack of attention has this "
                        f"width. {_LEAVE_OUT}")  # fmt: skip
    groups = config.num_key_value_heads or heads
    return heads, groups if heads == most and heads % groups == 0 else heads
