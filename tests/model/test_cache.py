"""The recurrent cache layer: constant size, reordering, taking steps back."""

import pytest
import torch
from models import make_ids, make_model
from transformers import DynamicCache, StaticCache

PATTERN = "lru+bmru rglru cmru"


def filled(model, ids, record=False, make=DynamicCache, **options):
    cache = make(config=model.config, **options)
    if record:
        cache.activate_past_recording()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


def tensors(cache):
    return [tensor for layer in cache.layers for tensor in layer._tensors()]


def held_bytes(cache):
    return sum(t.untyped_storage().nbytes() for t in tensors(cache))


def same(one, two):
    return all(torch.equal(x, y) for x, y in zip(tensors(one), tensors(two), strict=True))


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
def test_size_does_not_grow(make):
    model = make_model(PATTERN)
    options = {"max_cache_len": 10_000} if make is StaticCache else {}
    cache = filled(model, make_ids(1, 10), make=make, **options)
    before = held_bytes(cache)
    with torch.no_grad():
        for _ in range(10):
            model(make_ids(1, 999), past_key_values=cache)
    assert cache.get_seq_length() == 10_000
    assert held_bytes(cache) == before > 0


def test_states_are_float32_and_the_storage_stays(monkeypatch):
    model = make_model(PATTERN, dtype=torch.bfloat16)
    cache = filled(model, make_ids(2, 10))
    addresses = [t.data_ptr() for t in tensors(cache)]
    with torch.no_grad():
        model(make_ids(2, 3), past_key_values=cache)
    assert [t.data_ptr() for t in tensors(cache)] == addresses
    assert all(s.dtype == torch.float32 for layer in cache.layers for s in layer.states.values())
    assert all(layer.conv.dtype == torch.bfloat16 for layer in cache.layers)


def test_a_layer_without_convolution():
    model = make_model(PATTERN, conv_kernel=0)
    cache = filled(model, make_ids(1, 5))
    assert all(layer.conv is None and layer.has_previous_state[0] for layer in cache.layers)
    assert cache.has_previous_state()


@pytest.mark.parametrize("removed", [0, 1, 3, 9])
def test_crop_takes_the_last_tokens_back(removed):
    model, ids = make_model("lru bmru attention"), make_ids(1, 20)
    cache = filled(model, ids[:, :11], record=True)
    cache.crop(0)
    with torch.no_grad():
        model(ids[:, 11:], past_key_values=cache)
    cache.crop(-removed)
    kept = 20 - removed
    assert cache.get_seq_length() == kept
    fresh = filled(model, ids[:, :kept])
    for one, two in zip(cache.layers[:2], fresh.layers[:2], strict=True):
        for x, y in zip(one._tensors(), two._tensors(), strict=True):
            assert torch.allclose(x, y, atol=1e-5)
    following = make_ids(1, 4, seed=8)
    with torch.no_grad():
        a, b = model(following, past_key_values=cache).logits, model(following, past_key_values=fresh).logits
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_crop_of_everything_and_what_it_refuses():
    model, ids = make_model(PATTERN), make_ids(1, 6)
    cache = filled(model, ids, record=True)
    cache.crop(-6)
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        again = model(ids, past_key_values=cache).logits
        assert torch.equal(again, model(ids, use_cache=False).logits)
    with pytest.raises(ValueError, match="tokens were recorded since the last crop"):
        cache.crop(-7)
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(1)
    plain = filled(model, ids)
    with pytest.raises(ValueError, match="activate_past_recording"):
        plain.crop(-1)


def test_rows_can_be_reordered_repeated_and_selected():
    model, ids = make_model(PATTERN), make_ids(3, 9)
    order = torch.tensor([2, 0, 0])
    cache = filled(model, ids)
    cache.reorder_cache(order)
    assert same(cache, filled(model, ids[order]))
    cache = filled(model, ids)
    cache.batch_repeat_interleave(2)
    assert same(cache, filled(model, ids.repeat_interleave(2, 0)))
    cache = filled(model, ids)
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.batch_size == 1
    assert same(cache, filled(model, ids[1:2]))


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
def test_reset_empties(make):
    options = {"max_cache_len": 50} if make is StaticCache else {}
    model, ids = make_model(PATTERN), make_ids(1, 9)
    cache = filled(model, make_ids(1, 7, seed=3), make=make, **options)
    addresses = [t.data_ptr() for t in tensors(cache)]
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        assert torch.equal(model(ids, past_key_values=cache).logits, model(ids, use_cache=False).logits)
    if make is StaticCache:
        assert [t.data_ptr() for t in tensors(cache)] == addresses


def test_gradients_flow_through_a_cache():
    model, ids = make_model(PATTERN).train(), make_ids(1, 12)
    cache = DynamicCache(config=model.config)
    model(ids[:, :6], past_key_values=cache)
    model(ids[:, 6:], past_key_values=cache).logits.sum().backward()
    in_two = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(ids, use_cache=False).logits[:, 6:].sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad - in_two[name]).abs().max() <= 1e-4 * (1 + p.grad.abs().max()), name


def test_a_cache_made_without_a_config_is_filled_and_a_wrong_one_refused():
    model, ids = make_model("bmru attention"), make_ids(1, 5)
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert len(cache.layers) == 2
    other = DynamicCache(config=make_model("attention bmru").config)
    with pytest.raises(ValueError, match="do not fit the pattern 'bmru attention'"):
        model(ids, past_key_values=other)
