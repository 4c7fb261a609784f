"""Generation: the same seed, the same text; what is streamed is what is returned; nothing else is touched."""

import io

import pytest
import torch

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.generate import generate_text


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
