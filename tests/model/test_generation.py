"""generate() in every mode and with every cache gives what one plain forward gives, and a broken state is noticed."""

import functools

import pytest
import torch
from generating import CACHES, MODES, NEW, PADDING, PROMPT, assert_on_the_plain_path, generate, models, prompts
from models import PATTERNS
from transformers import DynamicCache, StaticCache

from hybridlm.model.block_hybridlm import RecurrentMixer
from hybridlm.model.cache_hybridlm import HybridRecurrentLayer
from hybridlm.model.mixers_hybridlm import ATTENTION

BF16 = torch.bfloat16
CASES = [
    (pattern, mode)
    for pattern in PATTERNS
    for mode in MODES
    if mode in ("greedy", "several beams") or len(pattern.split()) > 1
]
"""Every mode on stacks; each mixer by itself in the simplest mode, and in the one that repeats and reorders rows."""


@pytest.mark.parametrize(("pattern", "mode"), CASES)
def test_every_cache_gives_the_tokens_and_logits_of_plain_forwards(pattern, mode):
    model, _ = models(pattern)
    for padding in PADDING:
        ids, mask = prompts(padding)
        written = {cache: generate(model, ids, mode, cache, attention_mask=mask) for cache in CACHES}
        for cache, output in written.items():
            assert output.sequences.shape[1] == PROMPT + NEW
            assert torch.equal(output.sequences, written["no cache"].sequences), f"{padding}, {cache}"
            assert_on_the_plain_path(model, output, mask, what=f"{padding}, {cache}")


@pytest.mark.parametrize(("pattern", "mode"), CASES)
def test_every_cache_gives_the_logits_of_a_plain_forward_in_bfloat16(pattern, mode):
    model, exact = models(pattern, BF16)
    for padding in PADDING:
        ids, mask = prompts(padding)
        for cache in ("dynamic", "static"):
            output = generate(model, ids, mode, cache, attention_mask=mask)
            share = 1 / 2 if pattern in ATTENTION else 1 / 3  # as of views, in test_views
            assert_on_the_plain_path(model, output, mask, exact, f"{padding}, {cache}", share)
            if mode == "greedy":
                likeliest = torch.stack(output.logits, dim=1).argmax(-1)
                assert torch.equal(likeliest, output.sequences[:, PROMPT:])


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_what_a_step_is_handed_does_not_grow_with_the_text(mode, padding, monkeypatch):
    """But for the mask of a padded batch; and without a cache, where a step reads the whole text."""
    model, _ = models("rglru bmru")
    prepare, handed = type(model).prepare_inputs_for_generation, []

    @functools.wraps(prepare)
    def spy(self, input_ids, **options):
        mask = options["attention_mask"]
        handed.append((options["position_ids"].shape[1], None if mask is None else mask.shape[1]))
        return prepare(self, input_ids, **options)

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", spy)
    ids, mask = prompts(padding)
    grown = [PROMPT + step for step in range(NEW)]
    masks = grown if padding == "left padding" else [None] * NEW
    for cache, places in (("dynamic", [PROMPT] + [2] * (NEW - 1)), ("no cache", grown)):
        handed.clear()
        generate(model, ids, mode, cache, attention_mask=mask)
        assert handed == list(zip(places, masks, strict=True))


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_padded_batch_gives_what_each_row_gives_alone(pattern, mode):
    model, _ = models(pattern)
    ids, mask = prompts("left padding")
    for cache in CACHES:
        batch = generate(model, ids, mode, cache, attention_mask=mask).sequences
        for row, width in enumerate(PADDING["left padding"]):
            alone = generate(model, ids[row : row + 1, width:], mode, cache).sequences
            assert torch.equal(batch[row, width:], alone[0]), cache


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_continue_from_a_cache(pattern, dtype):
    """In the middle of the prompt, and after a whole call of generate, whose cache is one token short of its text."""
    model, exact = models(pattern, dtype)
    ids, mask = prompts("left padding")
    for make in (DynamicCache, StaticCache):
        cache = make(config=model.config, **({"max_cache_len": PROMPT + 2 * NEW} if make is StaticCache else {}))
        with torch.no_grad():
            places = (mask.cumsum(1) - 1).clamp_min(0)
            model(ids[:, :13], attention_mask=mask[:, :13], position_ids=places[:, :13], past_key_values=cache)
        begun = {"attention_mask": mask, "past_key_values": cache, "config": {"disable_compile": True}}
        first = generate(model, ids, **begun)
        assert_on_the_plain_path(model, first, mask, exact, make.__name__)
        longer = torch.cat([mask, mask.new_ones(3, NEW)], dim=1)
        assert cache.get_seq_length() == PROMPT + NEW - 1
        second = generate(model, first.sequences, **{**begun, "attention_mask": longer})
        assert_on_the_plain_path(model, second, longer, exact, make.__name__)
        if exact is None:
            whole = generate(model, ids, config={"max_new_tokens": 2 * NEW}, attention_mask=mask)
            assert torch.equal(second.sequences, whole.sequences)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunked_prefill(pattern, cache, dtype):
    """Also where the first chunk of a row is nothing but padding, and the last chunk is shorter."""
    model, exact = models(pattern, dtype)
    for padding in PADDING:
        ids, mask = prompts(padding)
        output = generate(model, ids, "greedy", cache, {"prefill_chunk_size": 7}, attention_mask=mask)
        assert_on_the_plain_path(model, output, mask, exact, padding)
        if exact is None:
            whole = generate(model, ids, attention_mask=mask)
            assert torch.equal(output.sequences, whole.sequences), padding


def rounded(write, layer, states, conv):
    write(layer, {name: state.bfloat16().float() for name, state in states.items()}, conv)


def lost(write, layer, states, conv):
    write(layer, {name: torch.zeros_like(state) for name, state in states.items()}, conv)


def late(write, layer, states, conv):
    write(layer, states, conv.roll(1, dims=1))


def unmasked(forward, mixer, u, mask, reset, cache):
    return forward(mixer, u, None, reset, cache)


def unordered(reorder, layer, beam_idx):
    reorder(layer, torch.arange(len(beam_idx)))


FAULTS = {
    "the state is rounded to bf16": (HybridRecurrentLayer, "_write", rounded, "greedy"),
    "the state is lost": (HybridRecurrentLayer, "_write", lost, "greedy"),
    "the convolution's window is a step late": (HybridRecurrentLayer, "_write", late, "greedy"),
    "padding moves the state": (RecurrentMixer, "forward", unmasked, "greedy"),
    "beams keep the state of another beam": (HybridRecurrentLayer, "reorder_cache", unordered, "beams"),
}


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("pattern", ["lru", "rglru", "mingru"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, pattern, dtype, monkeypatch):
    """What the tests above assert fails for a model with one fault in what it does with its states."""
    model, exact = models(pattern, dtype)
    owner, name, change, mode = FAULTS[fault]
    ids, mask = prompts("left padding")
    for cache in ("dynamic", "static"):
        sound = getattr(owner, name)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *given, sound=sound: change(sound, *given))
            output = generate(model, ids, mode, cache, attention_mask=mask)
        with pytest.raises(AssertionError, match="is allowed"):
            assert_on_the_plain_path(model, output, mask, exact)


@pytest.mark.parametrize("pattern", ["lru", "bmru attention"])
def test_what_is_refused_before_anything_is_computed(pattern):
    model, _ = models(pattern)
    ids, _ = prompts()
    for given in ({"inputs": ids[:, :0]}, {"input_ids": ids[:, :0]}):
        with pytest.raises(ValueError, match=r"input of shape \(3, 0\) has no token"):
            model.generate(**given, max_new_tokens=2)
    embeds = model.get_input_embeddings()(ids)
    for given in ({}, {"input_ids": ids}):
        with pytest.raises(ValueError, match="prefill_chunk_size=4 with inputs_embeds"):
            model.generate(**given, inputs_embeds=embeds, prefill_chunk_size=4, max_new_tokens=2, pad_token_id=0)
    assert model.generate(inputs_embeds=embeds, max_new_tokens=2, pad_token_id=0, do_sample=False).shape == (3, 2)
