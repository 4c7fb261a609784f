"""Generation: the same seed, the same text; what is streamed is what is returned; nothing else is touched."""

import io
import sys

import pytest
import torch

from hybridlm.cli import main
from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation import generate
from hybridlm.evaluation.generate import generate_text, write_on
from hybridlm.evaluation.reading import read_text
from hybridlm.model.conversation_hybridlm import Conversation


def test_what_is_streamed_is_what_is_returned(model, tokenizer):
    stream = io.StringIO()
    text = generate_text(model, tokenizer, "Anne had", max_new_tokens=30, stream=stream)
    assert text.startswith("Anne had")
    assert stream.getvalue() == text + "\n"


def test_a_seed_decides_the_text_and_the_random_state_is_left_alone(model, tokenizer):
    before = torch.get_rng_state()
    texts = [generate_text(model, tokenizer, "Anne", max_new_tokens=30, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_temperature_zero_takes_the_likeliest_token(model, tokenizer):
    text = generate_text(model, tokenizer, "Anne", max_new_tokens=20, temperature=0)
    ids = torch.tensor([prompt_ids(tokenizer, "Anne")])
    for _ in range(20):
        with torch.no_grad():
            token = model(input_ids=ids).logits[:, -1].argmax(1, keepdim=True)
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token], 1)
    assert text == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text == generate_text(model, tokenizer, "Anne", max_new_tokens=20, temperature=1.0, top_k=1)
    assert text == generate_text(model, tokenizer, "Anne", max_new_tokens=20, temperature=1.0, top_p=1e-9)


def test_an_empty_prompt_begins_a_document(model, tokenizer):
    ids = torch.tensor([[tokenizer.bos_token_id]])
    torch.manual_seed(5)
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=True, temperature=2.0, top_k=0
    )
    text = generate_text(model, tokenizer, "", max_new_tokens=20, temperature=2.0, seed=5)
    assert text == tokenizer.decode(wanted[0], skip_special_tokens=True) != ""


def test_all_that_is_out_of_range_is_said_at_once(model, tokenizer):
    bad = {"max_new_tokens": 0, "temperature": -1.0, "top_p": 0.0, "top_k": -2, "seed": -3}
    with pytest.raises(UserError) as refusal:
        generate_text(model, tokenizer, "Anne", **bad)
    for name, value in bad.items():
        assert f"{name}={value}: must be" in str(refusal.value)


def test_options_that_would_be_ignored_are_refused(model, tokenizer):
    with pytest.raises(UserError, match="leave out top_p"):
        generate_text(model, tokenizer, "Anne", temperature=0, top_p=0.9)


def test_an_encoding_that_lacks_a_character_gets_it_as_an_escape(checkpoint, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["generate", str(checkpoint), "l'été", "--max-new-tokens", "3"]) == 0
    assert out.buffer.getvalue().startswith(rb"l'\xe9t\xe9")


@pytest.mark.parametrize("pattern", ["rglru bmru", "lru sliding_attention", "mamba2 attention"])
def test_a_long_input_is_read_in_calls_and_gives_the_same_text(build, tokenizer, monkeypatch, pattern):
    model = build(pattern, sliding_window=8, tie_word_embeddings=False)
    ids = [prompt_ids(tokenizer, text) for text in ("Anne had been a very pretty girl, but", "her bloom")]
    state, _ = read_text(model, tokenizer, "It is a truth")
    padded = [[0] * (len(ids[0]) - len(ids[1])) + ids[1], ids[0]]
    mask = torch.tensor([[int(at >= len(ids[0]) - len(row)) for at in range(len(ids[0]))] for row in (ids[1], ids[0])])

    def written(call):
        monkeypatch.setattr(generate, "CALL", call)
        talk = state.fork(2)
        pending = torch.cat([talk.pending_ids, torch.tensor(padded)], 1)
        before = Conversation(talk.cache, attention_mask=talk.attention_mask)
        longer = torch.cat([torch.ones_like(talk.pending_ids), mask], 1)
        choice = {"max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "top_k": 0, "seed": 0}
        alone = {"input_ids": torch.tensor(padded), "attention_mask": mask}
        return [write_on(model, tokenizer, inputs, **choice) for inputs in (alone, before.inputs(pending, longer))]

    whole, lengths = written(1000), []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["input_ids"]).shape[1]), with_kwargs=True
    )
    pieces = written(5)
    hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))
    assert 1 < max(lengths) <= 5
