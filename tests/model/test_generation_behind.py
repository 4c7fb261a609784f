"""Guesses behind a cache that was handed in: with padding in it, from the whole text or from what is new alone."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from models import PATTERNS, make_ids, make_model
from test_generation_assisted import guessing
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

LENGTH, NEW = 20, 10
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
WIDTHS = {"none": (0, 0), "left": (3, 0), "inside": (3, 2)}
"""Padding at the start, and before the last five tokens."""


def text(padding):
    """ids (1, LENGTH) with some of them padding, the mask, and the ids without the padding."""
    left, inside = WIDTHS[padding]
    ids, mask = make_ids(1, LENGTH // 2).repeat(1, 2), torch.ones(1, LENGTH, dtype=torch.long)
    mask[:, :left] = mask[:, LENGTH - 5 - inside : LENGTH - 5] = 0
    return ids.masked_fill(mask == 0, 0), mask, ids[mask.bool()][None]


def read(model, ids, mask):
    cache = DynamicCache(config=model.config)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        model(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
    return cache


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, eos_token_id=None, bos_token_id=1, **sizes)).eval()


def origins(model, names):
    """Where guesses come from, as options of `generate`."""
    found = {"nothing": {}, "lookup": {"prompt_lookup_num_tokens": 3}}
    makes = {"llama": llama, "itself": lambda: make_model(model.config.pattern, eos_token_id=None).double()}
    for name in set(names) - set(found):
        draft = makes[name]() if name in makes else make_model(name, seed=4, eos_token_id=None)
        found[name] = guessing(model, draft)
    return {name: found[name] for name in names}


def assert_guesses_change_nothing(model, names, paddings, cuts):
    """The tokens, and the logits that they were chosen from, of a call without padding, cache or guesses."""
    asked = {"return_dict_in_generate": True, "output_logits": True, **GREEDY}
    kinds = origins(model, names)
    for padding in paddings:
        ids, mask, plain = text(padding)
        want = model.generate(plain, **asked)
        chosen_from = torch.stack(want.logits)
        for cut, (name, options) in itertools.product(cuts, kinds.items()):
            for first in (0, cut):  # the whole text, or the new tokens alone
                cache = read(model, ids[:, :cut], mask[:, :cut])
                got = model.generate(ids[:, first:], attention_mask=mask, past_key_values=cache, **options, **asked)
                case = padding, cut, name, first
                assert torch.equal(got.sequences[:, -NEW:], want.sequences[:, -NEW:]), case
                assert (torch.stack(got.logits) - chosen_from).abs().max() <= 1e-9 * chosen_from.abs().max(), case


@pytest.mark.parametrize("pattern", PATTERNS)
def test_guesses_behind_a_padded_cache(pattern):
    model = make_model(pattern, eos_token_id=None).double()
    assert_guesses_change_nothing(model, ["lookup", "lru"], ["left"], [8])


@pytest.mark.parametrize("pattern", ["lru", "lru attention", "attention", "sliding_attention"])
def test_guesses_of_every_origin_behind_a_padded_cache(pattern):
    """Padding inside a row takes up room in the window of `sliding_attention`."""
    model = make_model(pattern, eos_token_id=None).double()
    paddings = [padding for padding in WIDTHS if padding != "inside" or pattern != "sliding_attention"]
    names = ["nothing", "lookup", "itself", "attention", "llama"]
    assert_guesses_change_nothing(model, names, paddings, [4, LENGTH - 1])


@pytest.mark.parametrize("padding", WIDTHS)
def test_a_draft_is_told_of_the_new_tokens_what_is_padding_and_where_they_stand(padding):
    """A draft begins without the past, so its mask has a column for every token that it has seen, and no other."""
    model, draft = (make_model("lru attention", seed=seed, eos_token_id=None) for seed in (0, 4))
    ids, mask, _ = text(padding)
    calls = []

    def note(_model, _given, call):
        places, columns, length = call["position_ids"], call.get("attention_mask"), call["input_ids"].shape[1]
        own = call["past_key_values"].get_seq_length() + length
        calls.append(own)
        if columns is not None:
            assert columns.shape == (1, own)
            assert torch.equal(columns[:, : LENGTH - 8], mask[:, 8:])
        full = F.pad(mask, (0, 8 + own - LENGTH), value=1)
        want = (full.cumsum(1) - 1).masked_fill(full == 0, 0)[:, -length:]
        assert torch.equal(places, want)

    draft.register_forward_pre_hook(note, with_kwargs=True)
    cache = read(model, ids[:, :8], mask[:, :8])
    model.generate(ids[:, 8:], attention_mask=mask, past_key_values=cache, **guessing(model, draft), **GREEDY)
    assert calls[0] == LENGTH - 8
    assert len(calls) >= 6


@pytest.mark.parametrize("known", ["input_ids", "pending_ids"])
@pytest.mark.parametrize("pattern", ["lru", "lru attention", "attention", "sliding_attention"])
def test_guesses_in_a_conversation_that_began_with_padding(pattern, known, tmp_path):
    model = make_model(pattern, eos_token_id=None)
    ids, mask, plain = text("left")
    want = model.generate(plain, **GREEDY)[:, -NEW:]
    rest = {"input_ids": ids} if known == "input_ids" else {"pending_ids": ids[:, 8:]}
    model.save_cache(read(model, ids[:, :8], mask[:, :8]), tmp_path / "state", attention_mask=mask[:, :8], **rest)
    for name, options in origins(model, ["nothing", "lookup", "lru"]).items():
        talk = model.load_conversation(tmp_path / "state")
        assert torch.equal(model.generate(**talk.inputs(), **options, **GREEDY)[:, -NEW:], want), name


def test_another_thread_does_not_change_what_is_left_out():
    """While the draft guesses, another thread generates with the same model and no cache."""
    model, draft = (make_model("lru", seed=seed, eos_token_id=None) for seed in (0, 4))
    ids, mask, plain = text("left")
    want = model.generate(plain, **GREEDY)[:, -NEW:]
    others = []

    def meanwhile(*_):
        if len(others) < 2:
            options = {**GREEDY, "max_new_tokens": 3, "prompt_lookup_num_tokens": 2}
            other = threading.Thread(target=lambda: others.append(model.generate(plain, **options)))
            other.start()
            other.join()

    draft.register_forward_hook(meanwhile)
    for first in (0, 8):
        others.clear()
        options = {"attention_mask": mask, "past_key_values": read(model, ids[:, :8], mask[:, :8])}
        got = model.generate(ids[:, first:], **options, **guessing(model, draft), **GREEDY)
        assert torch.equal(got[:, -NEW:], want)
        assert all(torch.equal(other[:, -3:], want[:, :3]) for other in others)
        assert len(others) == 2


@pytest.mark.parametrize("pattern", ["lru bmru", "lru attention", "sliding_attention lru"])
def test_a_cache_records_no_more_once_the_text_is_written(pattern):
    """Also where a streamer breaks off in the middle."""
    model = make_model(pattern, eos_token_id=None)
    ids, mask, _ = text("none")
    options = {"prompt_lookup_num_tokens": 3, **GREEDY}
    output = model.generate(ids, return_dict_in_generate=True, **options)
    broken = read(model, ids[:, :8], mask[:, :8])
    with pytest.raises(OSError, match="closed"):
        model.generate(ids, past_key_values=broken, streamer=Closed(), **options)
    whole = read(model, output.sequences[:, :-1], torch.ones(1, LENGTH + NEW - 1, dtype=torch.long))
    for step in make_ids(1, 12, seed=3).split(1, dim=1):
        with torch.no_grad():
            want, got, _ = (model(step, past_key_values=c).logits for c in (whole, output.past_key_values, broken))
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    for cache in (output.past_key_values, broken):
        for layer in cache.layers:
            assert not getattr(layer, "record_past", False)
            assert not getattr(layer, "_past", [])
            assert not layer.is_sliding or layer.keys.shape[2] == model.config.sliding_window - 1


class Closed:
    """A streamer that takes the prompt and one piece of the answer."""

    def __init__(self):
        self.taken = 0

    def put(self, _):
        self.taken += 1
        if self.taken == 3:
            raise OSError("closed")

    def end(self):
        raise AssertionError("the text was not to end")


def test_masks_that_fit_neither_the_input_nor_the_whole_text():
    for pattern in ("lru", "attention"):
        model = make_model(pattern, eos_token_id=None)
        ids, mask, _ = text("left")
        for options in ({}, {"prompt_lookup_num_tokens": 3}):
            cache = read(model, ids[:, :8], mask[:, :8])
            with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 17\), input_ids \(1, 12\)"):
                model.generate(ids[:, 8:], attention_mask=mask[:, 3:], past_key_values=cache, **options, **GREEDY)
