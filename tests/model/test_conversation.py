"""A cache that is saved, loaded elsewhere or forked goes on to the last bit as if nothing had come between."""

import copy
import io
import json

import pytest
import torch
from conversations import GREEDY, MIXED, SAMPLING, STACK, contents, generate, identical, read, saved, shares_memory
from launching import launch
from models import PATTERNS, make_ids, make_model
from transformers import DynamicCache, StaticCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_loaded_cache_is_the_saved_one_and_goes_on_with_the_same_tokens(pattern, dtype, tmp_path):
    model, ids = make_model(pattern, dtype=dtype), make_ids(2, 40)
    cache = read(model, ids[:, :33])
    model.save_cache(cache, tmp_path / "state")
    loaded = [model.load_cache(tmp_path / "state") for _ in range(3)]
    assert identical(cache, loaded[0])
    assert not any(getattr(layer, "record_past", False) for layer in loaded[0].layers)
    sampled = generate(model, input_ids=ids, past_key_values=model.fork_cache(cache), **SAMPLING)
    assert torch.equal(generate(model, input_ids=ids, past_key_values=loaded[0], **SAMPLING), sampled)
    with torch.no_grad():
        there = model(ids[:, 33:], past_key_values=loaded[1]).logits
        assert torch.equal(model(ids[:, 33:], past_key_values=cache).logits, there)
    assert identical(cache, loaded[1])
    assert not identical_tensors(cache, loaded[2])


def identical_tensors(one, two):
    pairs = zip(contents(one), contents(two), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for (_, x), (_, y) in pairs if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_padded_batch_is_interrupted_without_a_trace(pattern, tmp_path):
    """4 tokens, a file, 5 more: the same as 9 in one go; from the whole text or from the pending token alone."""
    model, ids = make_model(pattern, tie_word_embeddings=False), make_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[2, :2] = 0
    padded = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    whole = generate(model, 9, repetition_penalty=1.3, **padded)
    begun = generate(model, 4, repetition_penalty=1.3, return_dict_in_generate=True, **padded)
    model.save_cache(begun.past_key_values, tmp_path / "state", input_ids=begun.sequences, attention_mask=mask)
    talk = model.load_conversation(tmp_path / "state")
    assert torch.equal(talk.pending_ids, begun.sequences[:, -1:])
    assert torch.equal(talk.attention_mask, torch.cat([mask, mask.new_ones(3, 3)], dim=1))
    assert torch.equal(generate(model, 5, **talk.inputs(), repetition_penalty=1.3, **GREEDY), whole)

    whole = generate(model, 9, **padded)
    begun = generate(model, 4, return_dict_in_generate=True, **padded)
    assert len(set(whole[0, 12:].tolist())) > 3  # not one token over and over, which any state would give
    pending = begun.sequences[:, -1:]
    model.save_cache(begun.past_key_values, tmp_path / "state", pending_ids=pending, attention_mask=mask)
    talk = model.load_conversation(tmp_path / "state")
    assert torch.equal(generate(model, 5, **talk.fork().inputs(), **GREEDY)[:, 1:], whole[:, 16:])

    # A padded question in front of all that: the model sees what one call without a cache sees.
    question, seen = make_ids(3, 4, seed=9), torch.ones(3, 4, dtype=torch.long)
    seen[0, :2] = 0
    text = torch.cat([begun.sequences, question], dim=1)
    columns = torch.cat([mask, mask.new_ones(3, 4), seen], dim=1)
    wanted = generate(model, 5, input_ids=text, attention_mask=columns, **GREEDY)
    assert torch.equal(generate(model, 5, **talk.inputs(question, seen), **GREEDY)[:, 1:], wanted[:, 16:])


ELSEWHERE = """
import sys, torch
from hybridlm import HybridLMForCausalLM
for folder in sys.argv[1:]:
    model = HybridLMForCausalLM.from_pretrained(folder).eval()
    cache = model.load_cache(folder + "/state.safetensors")
    torch.manual_seed(5)
    question = torch.tensor([[7, 8, 9]])
    written = model.generate(question, past_key_values=cache, max_new_tokens=8, do_sample=True, pad_token_id=0)
    print(written[0].tolist())
"""


def test_another_process_goes_on_with_the_same_tokens(tmp_path):
    question, wanted = torch.tensor([[7, 8, 9]]), []
    folders = [tmp_path / str(i) for i in range(3)]
    dtypes = (torch.float32, torch.bfloat16, torch.float32)
    for folder, pattern, dtype in zip(folders, (STACK, STACK, MIXED), dtypes, strict=True):
        model = make_model(pattern, dtype=dtype)
        model.save_pretrained(folder)
        cache = read(model, make_ids(1, 50))
        model.save_cache(cache, folder / "state.safetensors")
        options = {"past_key_values": cache, "do_sample": True, "pad_token_id": 0}
        wanted.append(generate(model, inputs=question, **options)[0].tolist())
    done = launch(["-c", ELSEWHERE, *folders])
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted


@pytest.mark.parametrize("length", [5, 20])
@pytest.mark.parametrize("pattern", [STACK, "lru attention bmru sliding_attention"])
def test_static_caches(pattern, length, tmp_path):
    """Below the window of 8 and beyond it."""
    options = {"sliding_window": 8} if "sliding" in pattern else {}
    model, ids = make_model(pattern, **options), make_ids(2, length + 6)
    cache = read(model, ids[:, :length], StaticCache, max_cache_len=32)
    model.save_cache(cache, tmp_path / "state")
    loaded, forked = model.load_cache(tmp_path / "state"), model.fork_cache(cache, 2)
    assert isinstance(loaded, StaticCache)
    assert identical(cache, loaded)
    with torch.no_grad():
        for steps in (3, 1, 1, 1):
            ids_now = ids[:, length : length + steps]
            want = model(ids_now, past_key_values=cache).logits
            assert torch.equal(model(ids_now, past_key_values=loaded).logits, want)
            doubled = model(ids_now.repeat_interleave(2, 0), past_key_values=forked).logits
            assert torch.allclose(doubled, want.repeat_interleave(2, 0), atol=1e-5)
            length += steps
    assert identical(cache, loaded)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_many_answers_from_one_text(pattern):
    model, text, question = make_model(pattern), make_ids(2, 20), make_ids(2, 4, seed=3)
    cache = read(model, text)
    before = copy.deepcopy(cache)
    forked = model.fork_cache(cache, 3)
    assert not shares_memory(cache, forked)
    options = {"input_ids": question.repeat_interleave(3, 0), "attention_mask": torch.ones(6, 4)}  # as a tokenizer's
    answers = generate(model, **options, past_key_values=forked, **SAMPLING)
    assert len({tuple(answer.tolist()) for answer in answers}) == 6
    assert identical(cache, before)
    whole = torch.cat([text, question], dim=1).repeat_interleave(3, 0)
    assert torch.equal(generate(model, input_ids=whole, **SAMPLING)[:, 20:], answers)
    same = generate(
        model, input_ids=question, past_key_values=model.fork_cache(cache, 3), num_return_sequences=3, **SAMPLING
    )
    assert torch.equal(same, answers)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_copies_and_pickles_of_a_cache(pattern):
    model, ids = make_model(pattern), make_ids(1, 14)
    cache = read(model, ids[:, :9])
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    for other in (copy.deepcopy(cache), torch.load(file, weights_only=False), model.fork_cache(cache)):
        assert type(other) is type(cache)
        assert identical(cache, other)
        assert not shares_memory(cache, other)
        with torch.no_grad():
            model(ids[:, 9:], past_key_values=other)
        assert cache.get_seq_length() == 9
        assert other.get_seq_length() == 14


def test_new_tokens_alone_or_the_whole_text():
    """Behind a cache, an input that cannot be the whole text is what is new; otherwise transformers' rule holds."""
    model, ids = make_model(MIXED), make_ids(1, 16)
    cache = read(model, ids[:, :10])
    wanted = generate(model, input_ids=ids, **GREEDY)[:, 16:]
    new, fork = ids[:, 10:], model.fork_cache
    modes = ({}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 2}, {"assistant_model": make_model("lru")})
    for options in modes:
        for mask in ({}, {"attention_mask": torch.ones_like(new)}, {"attention_mask": torch.ones_like(ids)}):
            if "assistant_model" in options and mask:
                continue
            got = generate(model, inputs=new, past_key_values=fork(cache), **mask, **options, **GREEDY)
            assert torch.equal(got[:, 6:], wanted), (options, mask)
    assert torch.equal(generate(model, inputs=ids, past_key_values=fork(cache), **GREEDY)[:, 16:], wanted)
    beams = {**GREEDY, "num_beams": 3}
    got = generate(model, inputs=new, past_key_values=fork(cache, 3), **beams)[:, 6:]
    assert torch.equal(got, generate(model, inputs=ids, **beams)[:, 16:])
    with pytest.raises(ValueError, match="use_cache=False with past_key_values that hold 10 tokens"):
        generate(model, inputs=new, past_key_values=cache, use_cache=False, **GREEDY)


def test_a_short_text_before_a_long_question_needs_the_whole_mask():
    """3 tokens seen, 8 new ones: `Conversation.inputs` says so, where the input alone could be the whole text."""
    model, ids = make_model(MIXED), make_ids(1, 11)
    talk = model.load_conversation(saved(model, ids[:, :3]))
    wanted = generate(model, input_ids=ids, **GREEDY)[:, 11:]
    assert torch.equal(generate(model, **talk.inputs(ids[:, 3:]), **GREEDY)[:, 8:], wanted)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_cache_that_recorded_its_past_is_saved_without_it():
    """After assisted decoding, a sliding window's layer holds more than its window."""
    model, ids = make_model("bmru sliding_attention lru", sliding_window=4), make_ids(1, 30)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
    model.save_cache(cache, "state")
    loaded, fresh = model.load_cache("state"), read(model, ids[:, :20])
    assert identical(loaded, fresh)
    with pytest.raises(ValueError, match="activate_past_recording"):
        loaded.crop(-1)


def test_gradients_flow_through_a_fork():
    model, ids = make_model(STACK).train(), make_ids(1, 12)
    cache = DynamicCache(config=model.config)
    model(ids[:, :6], past_key_values=cache)
    model(ids[:, 6:].expand(2, -1), past_key_values=model.fork_cache(cache, 2)).logits.sum().backward()
    forked = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (2 * model(ids, use_cache=False).logits[:, 6:].sum()).backward()
    for name, p in model.named_parameters():
        assert (p.grad - forked[name]).abs().max() <= 1e-4 * (1 + p.grad.abs().max()), name


@pytest.mark.parametrize("places", ["some layers", "all"])
@pytest.mark.parametrize("pattern", ["rglru bmru", MIXED])
def test_a_model_whose_layers_lie_on_the_disk_goes_on_from_a_file(tmp_path, pattern, places):
    """Weights that are away have no device; what is loaded goes where the layer will compute. A file knows such a model
    by the shapes of its weights alone, so only one that is away in the same way reads it."""
    model, ids = make_model(pattern), make_ids(2, 12)
    model.save_pretrained(tmp_path / "model")
    names = ["model.embed_tokens", "model.norm", "lm_head", *(["model.rotary_emb"] if "attention" in pattern else [])]
    some = dict.fromkeys(names, "cpu") | {f"model.layers.{i}": "disk" for i in range(len(model.model.layers))}
    where = {"": "disk"} if places == "all" else some
    one, two = (
        type(model).from_pretrained(tmp_path / "model", device_map=where, offload_folder=tmp_path / name)
        for name in ("one", "two")
    )
    assert all(weight.is_meta for weight in two.model.layers.parameters())
    pending = make_ids(2, 1, seed=3)
    one.save_cache(read(one, ids), tmp_path / "state", pending_ids=pending)
    talk = two.load_conversation(tmp_path / "state")
    held = [tensor for layer in talk.cache.layers for tensor in getattr(layer, "states", {}).values()]
    assert held
    assert all(tensor.device.type == "cpu" for tensor in (*held, talk.pending_ids))
    got = generate(two, **talk.inputs(), **GREEDY)
    assert torch.equal(got[:, 1:], generate(model, input_ids=torch.cat([ids, pending], dim=1), **GREEDY)[:, 13:])


@pytest.mark.parametrize("length", [1, 9, 10])
def test_new_tokens_no_longer_than_the_cache_are_new(length):
    """One token more than the cache has seen is the whole text, as transformers takes it; as many or fewer are not."""
    model, ids = make_model(MIXED), make_ids(1, 10 + length)
    got = generate(model, input_ids=ids[:, 10:], past_key_values=read(model, ids[:, :10]), **GREEDY)
    assert torch.equal(got[:, length:], generate(model, input_ids=ids, **GREEDY)[:, 10 + length :])
    whole = torch.cat([ids[:, :10], ids[:, -1:]], dim=1)
    got = generate(model, input_ids=whole, past_key_values=read(model, ids[:, :10]), **GREEDY)
    assert torch.equal(got, generate(model, input_ids=whole, **GREEDY))
