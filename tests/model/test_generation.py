"""generate() gives the same tokens with and without a cache, in every mode."""

import pytest
import torch
from models import PATTERNS, make_ids, make_model
from transformers import DynamicCache, GenerationConfig

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2, "top_k": 20},
}


def generate(model, ids, mode, **options):
    torch.manual_seed(11)
    config = GenerationConfig(max_new_tokens=9, pad_token_id=0, eos_token_id=None, **MODES[mode])
    return model.generate(ids, generation_config=config, **options)


def left_padded(ids, widths):
    mask = torch.ones_like(ids)
    for row, width in enumerate(widths):
        mask[row, :width] = 0
    return ids.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_cached_equals_uncached_with_left_padding(pattern, mode):
    model = make_model(pattern)
    ids, mask = left_padded(make_ids(3, 8), (0, 3, 5))
    cached = generate(model, ids, mode, attention_mask=mask, use_cache=True)
    assert cached.shape == (3, 17)
    assert torch.equal(cached, generate(model, ids, mode, attention_mask=mask, use_cache=False))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_padded_batch_gives_what_each_row_gives_alone(pattern):
    model, widths = make_model(pattern), (0, 3, 5)
    ids, mask = left_padded(make_ids(3, 8), widths)
    batch = generate(model, ids, "greedy", attention_mask=mask)
    for row, width in enumerate(widths):
        alone = generate(model, ids[row : row + 1, width:], "greedy")
        assert torch.equal(batch[row, width:], alone[0])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_continue_from_a_cache(pattern):
    model, ids = make_model(pattern), make_ids(1, 8)
    whole = generate(model, ids, "greedy")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
    assert torch.equal(generate(model, ids, "greedy", past_key_values=cache), whole)


@pytest.mark.parametrize("pattern", ["(rglru bmru)*2", "lru bmru attention"])
def test_a_static_cache_gives_the_same_tokens(pattern):
    model = make_model(pattern)
    ids, mask = left_padded(make_ids(2, 8), (0, 3))
    torch.manual_seed(11)
    config = GenerationConfig(
        max_new_tokens=9,
        pad_token_id=0,
        eos_token_id=None,
        do_sample=False,
        cache_implementation="static",
        disable_compile=True,
    )
    static = model.generate(ids, attention_mask=mask, generation_config=config)
    assert torch.equal(static, generate(model, ids, "greedy", attention_mask=mask))


@pytest.mark.parametrize("pattern", ["(rglru bmru)*2", "lru bmru attention"])
def test_prompt_lookup_and_assisted_decoding_give_the_greedy_tokens(pattern):
    model, draft = make_model(pattern), make_model(pattern, seed=4)
    ids = make_ids(1, 6).repeat(1, 3)  # repeats, so that looking up the prompt finds something
    greedy = generate(model, ids, "greedy")
    assert torch.equal(generate(model, ids, "greedy", prompt_lookup_num_tokens=3), greedy)
    assert torch.equal(generate(model, ids, "greedy", assistant_model=draft), greedy)
