"""Parameter groups: each parameter once, and decay only where it belongs."""

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.optimizer import build_optimizer, parameter_groups
from hybridlm.training.sections import OptimizerConfig


def model_of(**keywords) -> HybridLMForCausalLM:
    torch.manual_seed(0)
    return HybridLMForCausalLM(HybridLMConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, **keywords))


def names_in(model, group) -> set[str]:
    held = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_everything_once(tied):
    model = model_of(pattern="rglru bmru attention lru", tie_word_embeddings=tied)
    groups = {group["name"]: group for group in parameter_groups(model, 0.3)}
    decay, rest = (names_in(model, groups[name]) for name in ("decay", "no_decay"))
    assert not decay & rest
    assert decay | rest == {name for name, _ in model.named_parameters()}
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.3, 0.0)
    assert "model.embed_tokens.weight" in rest
    assert ("lm_head.weight" in decay) is not tied
    assert all(parameter.ndim >= 2 for parameter in groups["decay"]["params"])
    flagged = {name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    assert flagged
    assert flagged <= rest


def test_frozen_parameters_are_left_out():
    model = model_of(pattern="lru")
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_settings_reach_the_optimizer():
    model = model_of(pattern="bmru")
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2))
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.8, 0.9), 1e-6, decay)
