"""A model with an embedding for each position: what goes beyond is refused, what just fits is not."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import evaluate_text
from hybridlm.evaluation.generate import generate_text
from hybridlm.evaluation.harness import evaluate_tasks

POSITIONS = 48


@pytest.fixture(scope="module")
def gpt2(tokenizer):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=32, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


def test_generation_ends_at_the_last_position(gpt2, tokenizer):
    read = len(prompt_ids(tokenizer, "Anne had"))
    most = POSITIONS - read + 1  # the last token is written and not read
    assert generate_text(gpt2, tokenizer, "Anne had", max_new_tokens=most).startswith("Anne had")
    with pytest.raises(
        UserError, match=rf"prompt and max_new_tokens: {read} tokens and {most + 1}, .* {POSITIONS} pos"
    ):
        generate_text(gpt2, tokenizer, "Anne had", max_new_tokens=most + 1)


def test_evaluation_ends_at_the_last_position(gpt2, tokenizer, text):
    assert evaluate_text(gpt2, tokenizer, text, context=POSITIONS)["context"] == POSITIONS
    with pytest.raises(UserError, match=rf"context={POSITIONS + 1}, .* at most {POSITIONS}"):
        evaluate_text(gpt2, tokenizer, text, context=POSITIONS + 1)
    with pytest.raises(UserError, match=r"carry_state: \d+ tokens in one go, .* carry no state"):
        evaluate_text(gpt2, tokenizer, text, context=8, carry_state=True)
    assert evaluate_text(gpt2, tokenizer, "Anne", context=POSITIONS + 1)["nats"] > 0  # a text that is short enough
    with pytest.raises(UserError, match=f"context={POSITIONS + 1}"):
        evaluate_tasks(gpt2, tokenizer, {"tasks": {}}, context=POSITIONS + 1)
