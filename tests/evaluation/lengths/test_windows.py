"""Nats of windows against sums by hand, whatever the calls and batches, for models of several kinds."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from hybridlm.evaluation.lengths.tokens import tokens_of
from hybridlm.evaluation.lengths.windows import CALL, cache_name, impossible, read_windows
from hybridlm.evaluation.positions import position_limit

PATTERNS = ["rglru bmru", "lru attention"]


@pytest.fixture(scope="module")
def tokens(tokenizer, long_text):
    return tokens_of(tokenizer, long_text[:400])


@pytest.fixture(scope="module")
def models(build, others):
    return others | {pattern: build(pattern) for pattern in PATTERNS}


@torch.inference_mode()
def nats(model, tokens, span, length, **how):
    """Of the targets, in the order of the text."""
    how = {"cache": "past_key_values"} | how
    windows = list(read_windows(model, tokens, span, length, **how))
    return torch.cat([window.nats[window.scored - window.first :] for window in windows])


@pytest.mark.parametrize("name", ["llama", "gpt2", *PATTERNS])
@pytest.mark.parametrize("length", [2, 7, 48])
def test_each_target_is_predicted_from_its_own_window(models, tokens, nats_by_hand, name, length):
    span = (24, 24 + 3 * (length // 2) + length // 4)  # the last window is no full one, but for the shortest length
    expected = nats_by_hand(models[name], tokens, span, length)
    assert len(expected) == span[1] - span[0]
    # By hand each window is one forward; in calls, fp32 sums are taken in another order.
    for how in ({"call": 5, "rows": 1}, {"call": 5, "rows": 3}, {"call": 16}, {"cache": None}):
        found = nats(models[name], tokens, span, length, **how)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_another_context_gives_other_numbers(models, tokens, nats_by_hand):
    """The comparison above could have failed."""
    for model in models.values():
        short, long = (nats_by_hand(model, tokens, (24, 40), length) for length in (4, 48))
        assert (short - long).abs().max() > 0.01


def test_windows_say_where_they_lie(models, tokens):
    with torch.inference_mode():
        windows = list(read_windows(models["llama"], tokens, (10, 27), 8, cache=None))
    places = [(window.first, window.scored, window.last) for window in windows]
    assert places == [(6, 10, 14), (10, 14, 18), (14, 18, 22), (18, 22, 26), (22, 26, 27)]
    assert all(len(window.nats) == window.last - window.first for window in windows)


def mamba(kind, config, **sizes):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5} | sizes
    return kind(config(vocab_size=300, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)).eval()


def test_a_cache_is_used_where_it_carries_the_state_and_only_there(models, tokens):
    for model in models.values():
        assert cache_name(model, tokens.ids) == "past_key_values"
    sizes = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}
    carrying = mamba(Mamba2ForCausalLM, Mamba2Config, **sizes)
    assert cache_name(carrying, tokens.ids) == "cache_params"
    forgetting = mamba(MambaForCausalLM, MambaConfig)  # transformers drops its state where several tokens come at once
    assert cache_name(forgetting, tokens.ids) is None
    bfloat16 = models["rglru bmru"].to(torch.bfloat16)
    assert cache_name(bfloat16, tokens.ids) == "past_key_values"
    bfloat16.float()


def test_a_model_without_a_cache_is_read_in_one_call(models, tokens):
    class Uncached(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32
        config = models["llama"].config

        def forward(self, input_ids, use_cache):
            assert not use_cache
            return SimpleNamespace(logits=models["llama"](input_ids=input_ids, use_cache=False).logits)

        get_input_embeddings = get_output_embeddings = lambda self: None

    model = Uncached()
    assert cache_name(model, tokens.ids) is None
    whole = nats(model, tokens, (24, 60), 48, cache=None, call=4)  # in one call: fp32 sums in another order
    torch.testing.assert_close(whole, nats(models["llama"], tokens, (24, 60), 48), atol=1e-5, rtol=1e-5)


def test_lengths_that_cannot_be_read_are_known_before(models):
    assert position_limit(models["gpt2"]) == 64
    opt = OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=48, word_embed_proj_dim=32,
    )  # fmt: skip
    assert position_limit(OPTForCausalLM(opt)) == 48
    assert position_limit(models["llama"]) is None
    assert all(position_limit(models[pattern]) is None for pattern in PATTERNS)
    assert impossible(models["gpt2"], 64, "past_key_values") is None
    assert "each of 64 positions" in impossible(models["gpt2"], 65, "past_key_values")
    assert impossible(models["llama"], 2**27, "past_key_values") is None
    assert impossible(models["llama"], CALL, None) is None
    vocabulary = models["llama"].config.vocab_size
    reason = impossible(models["llama"], 2**27, None)
    assert f"would take {2**27 * vocabulary * 4 / 2**30:,.0f} GiB" in reason
