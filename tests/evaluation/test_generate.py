"""Generation: the same seed, the same text; what is streamed is what is returned; nothing else is touched."""

import io
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.generate import generate_text, write_on


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


@pytest.mark.parametrize(
    "said",
    [
        {"num_beams": 4},
        {"num_return_sequences": 3, "do_sample": True},
        {"stop_strings": ["x"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"return_dict_in_generate": True, "output_scores": True},
        {"cache_implementation": "quantized"},
        {"prompt_lookup_num_tokens": 3},
        {"token_healing": True, "max_time": 1e-9},
    ],
)
def test_how_a_checkpoint_would_search_is_not_followed(model, tokenizer, monkeypatch, said):
    """There is one text, as it comes. What generation_config.json says of tokens is followed."""
    wanted = generate_text(model, tokenizer, "Anne", max_new_tokens=8)
    own = GenerationConfig(**said)
    monkeypatch.setattr(model, "generation_config", own)
    assert generate_text(model, tokenizer, "Anne", max_new_tokens=8, stream=io.StringIO()) == wanted
    assert model.generation_config is own


def test_what_a_checkpoint_says_of_tokens_is_followed(model, tokenizer, monkeypatch):
    (first,) = generated = new_tokens(model, tokenizer, max_new_tokens=1)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(suppress_tokens=generated))
    assert first not in new_tokens(model, tokenizer, max_new_tokens=1)
    (second,) = new_tokens(model, tokenizer, max_new_tokens=1)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(suppress_tokens=generated, eos_token_id=[second]))
    assert new_tokens(model, tokenizer, max_new_tokens=9) == [second]
    for said, says in (
        ({"repetition_penalty": -1.0}, "it cannot be followed"),
        ({"eos_token_id": "x"}, "must be a num"),
    ):
        monkeypatch.setattr(model, "generation_config", SimpleNamespace(**{"eos_token_id": None} | said))
        with pytest.raises(UserError, match=rf"generation_config.json of the checkpoint: .*{says}"):
            generate_text(model, tokenizer, "Anne", max_new_tokens=2)


def new_tokens(model, tokenizer, **options):
    """The tokens behind "Anne" at temperature 0."""
    ids = torch.tensor([prompt_ids(tokenizer, "Anne")])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    drawn = {"temperature": 0, "top_p": 1.0, "top_k": 0, "seed": 0}
    return write_on(model, tokenizer, inputs, **drawn, **options)[0, ids.shape[1] :].tolist()
