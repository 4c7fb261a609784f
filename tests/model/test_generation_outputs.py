"""What generate() hands out beside tokens, who listens while it writes, and what ends or bends a text."""

from itertools import pairwise

import pytest
import torch
from generating import CACHES, MODES, NEW, PROMPT, generate, models, prompts
from models import PATTERNS, VOCABULARY, make_ids
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

MIXED = ["(rglru bmru)*2", "lru bmru attention", "mamba2 lstm+bmru sliding_attention"]
EVERYTHING = {"output_scores": True, "output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", MIXED)
def test_outputs_of_every_step(pattern, mode):
    """Scores, logits, hidden states and attentions have an entry for each new token, with the shapes that transformers
    promises; hidden states give the logits; with and without a cache they are the same."""
    model, _ = models(pattern, attn_implementation="eager")
    ids, mask = prompts("left padding")
    kinds = [kind for kind in model.config.layer_types if "linear" not in kind]
    outputs = {cache: generate(model, ids, mode, cache, EVERYTHING, attention_mask=mask) for cache in CACHES}
    rows = 3 * MODES[mode].get("num_beams", MODES[mode].get("num_return_sequences", 1))
    for cache, output in outputs.items():
        assert len(output.scores) == len(output.logits) == len(output.hidden_states) == len(output.attentions) == NEW
        assert {step.shape for step in (*output.scores, *output.logits)} == {(rows, VOCABULARY)}
        for t, (hidden, attentions) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
            width = PROMPT + t if cache == "no cache" else (PROMPT if t == 0 else 1)
            assert [states.shape for states in hidden] == [(rows, width, 32)] * (model.config.num_hidden_layers + 1)
            assert len(attentions) == len(kinds)
            for weights in attentions:
                assert weights.shape[:3] == (rows, 4, width)
            with torch.no_grad():
                logits = model.lm_head(hidden[-1][:, -1])
            assert torch.allclose(logits, output.logits[t], atol=1e-4)
            assert torch.allclose(hidden[-1][:, -1], outputs["no cache"].hidden_states[t][-1][:, -1], atol=1e-3)
    cache = outputs["dynamic"].past_key_values
    assert isinstance(cache, DynamicCache)
    assert cache.get_seq_length() == PROMPT + NEW - 1
    assert outputs["no cache"].past_key_values is None


class Listener(BaseStreamer):
    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("pattern", MIXED)
def test_a_streamer_hears_every_token_once(pattern):
    model, _ = models(pattern)
    ids = make_ids(1, 7).repeat(1, 2)
    for options in ({}, {"do_sample": True}, {"prompt_lookup_num_tokens": 3}):
        listener = Listener()
        output = generate(model, ids, config=options, streamer=listener)
        assert listener.heard == output.sequences[0].tolist()
        assert listener.ended


@pytest.mark.parametrize("mode", ["greedy", "sampling"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_end_at_their_own_end_symbol(pattern, mode):
    """A row that ended is filled with padding and changes nothing for the others; all ended: generation stops."""
    model, _ = models(pattern)
    ids, mask = prompts("left padding")
    free = generate(model, ids, mode, attention_mask=mask).sequences
    end = int(free[0, PROMPT + 2])
    for cache in CACHES:
        ended = generate(
            model, ids, mode, cache, {"eos_token_id": end, "pad_token_id": 5}, attention_mask=mask
        ).sequences
        for row in range(3):
            new = free[row, PROMPT:].tolist()
            kept = new.index(end) + 1 if end in new else NEW
            got = ended[row, PROMPT:].tolist()
            if mode == "greedy" or row == 0:
                assert got[:kept] == new[:kept], (cache, row)
            if row == 0:
                assert set(got[kept:]) <= {5}
    alone = generate(model, ids[:1], mode, config={"eos_token_id": [end, VOCABULARY - 1]}).sequences
    assert {end, VOCABULARY - 1} & set(alone[0, PROMPT:].tolist()) == {int(alone[0, -1])} or alone.shape[
        1
    ] == PROMPT + NEW
    if mode == "greedy":
        assert alone.shape[1] <= PROMPT + 3


class Stop(StoppingCriteria):
    """Row 0 after four tokens; all rows after six."""

    def __call__(self, input_ids, scores, **kwargs):
        new = input_ids.shape[1] - PROMPT
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0], done[1:] = new >= 4, new >= 6
        return done


@pytest.mark.parametrize("pattern", MIXED)
def test_stopping_criteria(pattern):
    model, _ = models(pattern)
    ids, mask = prompts()
    free = generate(model, ids, attention_mask=mask).sequences
    unsaid = next(token for token in range(VOCABULARY) if token not in free)  # padding needs an end symbol to be known
    for cache in CACHES:
        options = {"stopping_criteria": StoppingCriteriaList([Stop()]), "config": {"eos_token_id": unsaid}}
        stopped = generate(model, ids, cache=cache, attention_mask=mask, **options).sequences
        assert stopped.shape[1] == PROMPT + 6
        assert torch.equal(stopped[1:], free[1:, : PROMPT + 6])
        assert torch.equal(stopped[0, : PROMPT + 4], free[0, : PROMPT + 4])
        assert not stopped[0, PROMPT + 4 :].any()


BENT = {
    "repetition penalty": {"repetition_penalty": 1.5},
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "words that are not to be said": {"bad_words_ids": [[3], [7, 8]]},
    "temperature, nucleus, typical": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "typical_p": 0.95},
    "smallest probability": {"do_sample": True, "min_p": 0.05},
    "a first and a last token": {"forced_bos_token_id": 4, "forced_eos_token_id": 9},
    "guidance without a condition": {"guidance_scale": 1.5},
    "length penalty": {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
}


@pytest.mark.parametrize("how", BENT)
@pytest.mark.parametrize("pattern", MIXED)
def test_processors_of_logits(pattern, how):
    """The same tokens with every cache, and others than without the processor. Guidance keeps a second cache itself."""
    model, _ = models(pattern)
    ids, mask = prompts("left padding" if how != "guidance without a condition" else "no padding")
    written = {
        cache: generate(model, ids, "greedy", cache, BENT[how], attention_mask=mask).sequences for cache in CACHES
    }
    for cache, sequences in written.items():
        assert torch.equal(sequences, written["no cache"]), cache
    new = written["dynamic"][:, PROMPT:].tolist()
    if how == "no repeated pairs":
        assert all(len(set(pairwise(row))) == NEW - 1 for row in new)
    if how.startswith("words"):
        assert all(3 not in row for row in new)
    if how.startswith("a first"):
        assert all(row[-1] == 9 for row in new)


@pytest.mark.parametrize("pattern", MIXED)
def test_a_beam_search_for_several_texts_gives_them_in_order(pattern):
    """The best first, all different, each with the score that its own logits say."""
    model, _ = models(pattern)
    ids, mask = prompts("left padding")
    output = generate(model, ids, "several beams", config={"output_scores": True}, attention_mask=mask)
    assert output.sequences.shape == (6, PROMPT + NEW)
    scores = output.sequences_scores.view(3, 2)
    assert (scores[:, 0] >= scores[:, 1]).all()
    assert all(not torch.equal(*output.sequences.view(3, 2, -1)[row]) for row in range(3))
    gained = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    assert torch.allclose(gained.sum(1) / NEW, output.sequences_scores, atol=1e-4)
