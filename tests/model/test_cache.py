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


@pytest.mark.parametrize("pattern", ["mamba2", "lstm", "gru+bmru rglru", "mamba2 lstm+bmru sliding_attention"])
@pytest.mark.parametrize("removed", [1, 3, 8, 9])
@torch.no_grad()
def test_crop_behind_padding(pattern, removed):
    """Padding of one row ends inside the call that is taken back, the other has some among the tokens that are taken
    back: states found again must leave it out again."""
    model, ids = make_model(pattern), make_ids(2, 24)
    mask = torch.ones_like(ids)
    mask[0, :13] = mask[1, 17:19] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)

    def call(cache, begin, end):
        given = {"attention_mask": mask[:, :end], "position_ids": places[:, begin:end]}
        return model(ids[:, begin:end], past_key_values=cache, **given).logits

    cache, fresh = (DynamicCache(config=model.config) for _ in range(2))
    cache.activate_past_recording()
    call(cache, 0, 11)
    cache.crop(0)
    call(cache, 11, 20)
    cache.crop(-removed)
    kept = 20 - removed
    call(fresh, 0, kept)
    for one, two in zip(cache.layers, fresh.layers, strict=True):
        if hasattr(one, "states"):
            for x, y in zip(one._tensors(), two._tensors(), strict=True):
                assert torch.allclose(x, y, atol=1e-5)
    a, b = call(cache, kept, 24), call(fresh, kept, 24)
    real = mask[:, kept:].bool()
    assert (a - b)[real].abs().max() <= 1e-4 * b.abs().max()
    assert bool(real.any())


def test_rows_in_another_order_end_what_can_be_taken_back():
    """What was recorded is of the rows as they stood before."""
    model, ids = make_model(PATTERN), make_ids(3, 9)
    changes = (
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
    )
    for change, rows in zip(changes, ([2, 0, 0], [0, 0, 1, 1, 2, 2], [1]), strict=True):
        cache = filled(model, ids, record=True)
        change(cache)
        with pytest.raises(ValueError, match=r"0 tokens were recorded .* since rows were reordered"):
            cache.crop(-2)
        cache.crop(0)
        with torch.no_grad():
            model(ids[rows, :5], past_key_values=cache)
        cache.crop(-4)
        fresh = filled(model, torch.cat([ids, ids[:, :1]], dim=1)[rows])
        assert cache.get_seq_length() == fresh.get_seq_length() == 10
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(tensors(cache), tensors(fresh), strict=True))


def continued(model, ids, modes, make):
    """A cache made in the first mode, and the logits of one call in each mode behind it."""
    options, parts = {"max_cache_len": 40} if make is StaticCache else {}, []
    with modes[0]():
        cache = make(config=model.config, **options)
    for piece, mode in zip(ids.split(len(ids[0]) // len(modes), 1), modes, strict=True):
        with mode():
            parts.append(model(piece, past_key_values=cache).logits)
    return cache, parts


@pytest.mark.parametrize(
    ("pattern", "make"),
    [
        *((pattern, make) for pattern in (PATTERN, "mamba2 lstm+bmru") for make in (DynamicCache, StaticCache)),
        ("bmru attention", DynamicCache),  # not static: transformers' own static layers are written in place
        ("lru sliding_attention", DynamicCache),
    ],
)
def test_a_cache_goes_from_mode_to_mode(pattern, make):
    """What inference_mode leaves cannot be written to outside of it."""
    model, ids = make_model(pattern), make_ids(2, 18)
    want = model(ids).logits
    for modes in (
        [torch.inference_mode, torch.no_grad, torch.no_grad],
        [torch.inference_mode, torch.no_grad, torch.inference_mode],
        [torch.no_grad, torch.inference_mode, torch.no_grad],
    ):
        cache, parts = continued(model, ids, modes, make)
        assert (torch.cat(parts, dim=1) - want).abs().max() <= 1e-4 * want.abs().max()
        text = torch.cat([ids, ids[:, :3]], dim=1)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        wanted = model.generate(text, **options)
        assert torch.equal(model.generate(text, past_key_values=cache, **options), wanted)
        cache.reset()
        with torch.no_grad():
            again = model(ids, past_key_values=cache).logits
        assert (again - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
@pytest.mark.parametrize("trained", ["", "gate_proj"])
def test_a_step_without_gradients_leaves_the_graph_before_it_whole(trained, make):
    """Also where no gradient reaches the states: the gate's needs what they are a part of."""
    model, ids = make_model("mingru lru+bmru rglru").train(), make_ids(2, 12)
    for name, p in model.named_parameters():
        p.requires_grad_(trained in name)
    model(ids[:, :6]).logits.sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    _, parts = continued(model, ids, [torch.enable_grad, torch.no_grad], make)
    parts[0].sum().backward()
    assert want
    for name, grad in want.items():
        assert torch.allclose(model.get_parameter(name).grad, grad, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
def test_an_offloaded_cache_holds_what_it_held(make):
    options = {"max_cache_len": 50} if make is StaticCache else {}
    model, ids = make_model(PATTERN), make_ids(2, 14)
    cache, kept = (filled(model, ids[:, :9], make=make, **options) for _ in range(2))
    for layer in cache.layers:
        layer.offload()
        assert all(tensor.device.type == "cpu" for tensor in layer._tensors())
        layer.prefetch()
    assert same(cache, kept)
    assert any(bool(tensor.any()) for tensor in tensors(cache))
    with torch.no_grad():
        got, want = (model(ids[:, 9:], past_key_values=each).logits for each in (cache, kept))
    assert torch.equal(got, want)
