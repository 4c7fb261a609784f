"""Continuations with and without a change: those of plain generation, and KL against a change made by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector import continuation
from hybridlm.evaluation.inspector.continuation import Writing, compare
from hybridlm.evaluation.inspector.recording import record


def by_hand(model, ids, unit, tokens):
    """log p of each of `tokens` behind ids, and states behind the token before it, with a unit of layer 0 flipped in
    front of the last of ids."""
    cache, logs, states = DynamicCache(config=model.config), [], []
    with torch.no_grad():
        model(torch.tensor([ids[:-1]]), past_key_values=cache)
        cache.layers[0].states["0.s"][:, unit].neg_()
        for token in [ids[-1], *tokens[:-1]]:
            logs.append(model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1].log_softmax(0))
            states.append(torch.cat([state[0] for layer in (0, 2, 3) for state in cache.layers[layer].states.values()]))
    return torch.stack(logs), torch.stack(states)


def test_the_change_of_each_distribution(every_kind, ids, monkeypatch):
    monkeypatch.setattr(continuation, "CALL", 16)
    unit = int(np.flatnonzero(~record(every_kind, ids[:40]).written(slice(0, 16))[:, 39])[0])  # it holds there
    found = compare(every_kind, ids[:40], flips=[f"0.{unit}"], writing=Writing(tokens=9))
    start = torch.tensor([ids[:40]])
    options = {"attention_mask": torch.ones_like(start), "do_sample": False, "max_new_tokens": 9}
    assert found.plain == every_kind.generate(start, **options)[0, 40:].tolist()
    q, changed = by_hand(every_kind, ids[:40], unit, found.plain)
    with torch.no_grad():
        p = every_kind(torch.tensor([ids[:40] + found.plain])).logits[0, 39:-1].log_softmax(1)
    assert found.kl == pytest.approx(F.kl_div(q, p, log_target=True, reduction="none").sum(1).tolist(), abs=1e-12)
    assert found.kl[0] > 1e-5
    assert found.units == changed.shape[1] == 64
    plain = DynamicCache(config=every_kind.config)
    with torch.no_grad():
        every_kind(torch.tensor([ids[:39]]), past_key_values=plain)
        for count, token, state in zip(found.units_differ, [ids[39], *found.plain], changed, strict=False):
            every_kind(torch.tensor([[token]]), past_key_values=plain)
            now = [each[0] for layer in (0, 2, 3) for each in plain.layers[layer].states.values()]
            assert count == (torch.cat(now) != state).sum()


def test_the_changed_continuation_is_that_of_the_changed_model(every_kind, ids):
    """A frozen layer from the first token on: the text is the start symbol alone."""
    freezes = {"0": 1.0}
    found = compare(every_kind, ids[:1], freezes=freezes, writing=Writing(tokens=12))
    with continuation.intervene(every_kind, freezes=freezes):
        start = torch.tensor([ids[:1]])
        options = {"attention_mask": torch.ones_like(start), "do_sample": False, "max_new_tokens": 12}
        wanted = every_kind.generate(start, **options)[0, 1:].tolist()
    assert found.changed == wanted != found.plain


def test_both_continuations_are_drawn_with_the_same_numbers(build, ids):
    """Weights that ignore the memory: the change changes nothing."""
    model = build("bmru")
    with torch.no_grad():
        model.model.layers[0].mixer.out_proj.weight.zero_()
    one, two, other = (
        compare(model, ids, flips=["0"], writing=Writing(tokens=15, temperature=9.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert one.plain == one.changed == two.plain != other.plain
    assert one.kl == pytest.approx([0] * len(one.plain), abs=1e-12)
    assert one.units_differ[0] > 0


def test_refused_before_anything_is_read(every_kind, ids, monkeypatch):
    monkeypatch.setattr(every_kind, "forward", None)
    with pytest.raises(UserError, match="neither is given"):
        compare(every_kind, ids)
    with pytest.raises(UserError, match="none of that name"):
        compare(every_kind, ids, flips=["9.9"])
