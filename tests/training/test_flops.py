"""The operations of a token, against torch's own counter on small models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.fused_hybridlm import kernels_for
from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.training.flops import flops_per_token

ROWS, LENGTH = 2, 128
STEPWISE = ("gru", "lstm")


def counted(pattern, **options):
    """The formula's object, and what torch counts in a forward and in a backward, for each token."""
    kernels_for(torch.empty(1, 1, 1))  # they check themselves on first use, which no mode should see
    config = HybridLMConfig(
        pattern=pattern, hidden_size=16, num_attention_heads=2, vocab_size=40, mamba_d_head=8, mamba_d_state=8,
        attn_implementation="eager", **options,
    )  # fmt: skip
    model = HybridLMForCausalLM(config).train()
    ids = torch.randint(40, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as forward:
        loss = model(ids, labels=ids, use_cache=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    tokens = ROWS * LENGTH
    return flops_per_token(model, LENGTH), forward.get_total_flops() / tokens, backward.get_total_flops() / tokens


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in (*STEPWISE, "mamba2")])
def test_formula_is_what_torch_counts(mixer):
    flops, forward, backward = counted(mixer)
    assert flops.forward == forward
    assert flops.training == forward + backward


@pytest.mark.parametrize("options", [{"tie_word_embeddings": False}, {"num_key_value_heads": 1}, {"state_size": 24},
                                     {"intermediate_size": 0}, {"conv_kernel": 0, "output_gate": False}])  # fmt: skip
def test_formula_follows_the_options_of_a_stack(options):
    flops, forward, backward = counted("rglru+bmru attention", **options)
    assert flops.forward == forward
    assert flops.training == forward + backward


def test_the_products_of_mamba2s_scan_are_the_scan():
    flops, forward, _ = counted("mamba2")
    assert forward == pytest.approx(flops.forward + flops.scans, rel=0.02)  # the first product of left has no sum


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
def test_cells_that_torch_runs_in_one_call_count_their_matrices(cell, gates):
    """torch counts nothing in its fused loops."""
    plain, fused = (flops_per_token(_model(pattern), 8) for pattern in ("mingru", cell))
    assert fused.products - plain.products == 2 * (2 * gates - 2) * 16 * 16


def _model(pattern):
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, hidden_size=16, num_attention_heads=2, vocab_size=40))


def test_a_window_limits_what_attention_multiplies():
    short, long = (flops_per_token(_model("sliding_attention"), length) for length in (1024, 4096))
    assert short.attention == long.attention == 4 * 16 * 1024
    assert flops_per_token(_model("attention"), 4096).attention == 4 * 16 * 4096


def test_scans_stand_apart():
    flops = flops_per_token(_model("(lru bmru)*2"), 64)
    assert flops.scans == 2 * (2 * 4 * 16 + 2 * 16)
    assert flops.training == 3 * flops.products
    assert flops.training_scans == 3 * flops.scans
