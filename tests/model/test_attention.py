"""Attention: what a window lets a token see, what the cache keeps of it, and shared keys and values."""

import pytest
import torch
from models import make_ids, make_model
from transformers import DynamicCache, StaticCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

WINDOW = 7


@torch.no_grad()
def test_a_token_sees_its_window_and_nothing_before_it():
    model, ids = make_model("sliding_attention"), make_ids(1, 20)
    want = model(ids).logits[0, 15]
    for place in range(15):
        changed = ids.clone()
        changed[0, place] = ids[0, place] % 60 + 1
        assert torch.equal(model(changed).logits[0, 15], want) == (place <= 15 - WINDOW), place


@pytest.mark.parametrize(("pattern", "window"), [("attention", 10**6), ("sliding_attention", WINDOW)])
@torch.no_grad()
def test_equals_softmax_attention_written_out(pattern, window):
    model = make_model(pattern).double()
    mixer, x = model.model.layers[0].mixer, torch.randn(2, 20, 32).double()
    cos, sin = model.model.rotary_emb(x, torch.arange(20)[None])
    q, k, v = (proj(x).view(2, 20, -1, 8).transpose(1, 2) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)  # 4 heads, 2 of keys and values
    ahead = torch.arange(20)[:, None] - torch.arange(20)
    scores = (q @ k.mT / 8**0.5).masked_fill((ahead < 0) | (ahead >= window), -torch.inf)
    want = mixer.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    outputs = []
    mixer.register_forward_hook(lambda _mixer, _inputs, output: outputs.append(output[0]))
    model.model.layers[0].mixer_norm.register_forward_hook(lambda *_: x)
    model(make_ids(2, 20))
    assert torch.allclose(outputs[0], want, atol=1e-10)


@torch.no_grad()
def test_the_cache_of_a_window_stops_growing():
    model = make_model("sliding_attention bmru")
    cache = DynamicCache(config=model.config)
    for _ in range(5):
        model(make_ids(1, 9), past_key_values=cache)
        assert cache.layers[0].keys.shape[2] == WINDOW - 1
    assert cache.get_seq_length() == 45


@torch.no_grad()
def test_static_caches_of_a_window():
    model, ids = make_model("sliding_attention bmru"), make_ids(1, 30)
    want = model(ids).logits
    cache = StaticCache(config=model.config, max_cache_len=12)  # room for the window: never full
    got = torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split([9, 1, 15, 1, 4], 1)], 1)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    small = StaticCache(config=model.config, max_cache_len=5)  # less than the window
    model(ids[:, :4], past_key_values=small)
    with pytest.raises(ValueError, match="is full: 4 tokens are in it, 3 come"):
        model(ids[:, 4:7], past_key_values=small)


def test_full_and_sliding_caches_are_told_apart():
    cache = DynamicCache(config=make_model("attention bmru").config)
    with pytest.raises(ValueError, match="do not fit the pattern 'sliding_attention bmru'"):
        make_model("sliding_attention bmru")(make_ids(1, 5), past_key_values=cache)


@pytest.mark.parametrize("window", [1, 0, -3])
def test_a_window_of_nothing_is_refused(window):
    with pytest.raises(ValueError, match=f"sliding_window={window}: must be at least 2"):
        make_model("sliding_attention", sliding_window=window)
