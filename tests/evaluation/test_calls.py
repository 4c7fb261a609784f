"""Long inputs of `generate` are read in calls of so many tokens: the same text, in less memory."""

import pytest
import torch

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.evaluation import generate
from hybridlm.evaluation.generate import write_on
from hybridlm.evaluation.reading import read_text
from hybridlm.model.conversation_hybridlm import Conversation


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
