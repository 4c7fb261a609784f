"""Flips and freezes against models and caches that were changed by hand; and nothing is left of them."""

import copy

import pytest
import torch
from transformers import DynamicCache

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.interventions import intervene
from hybridlm.evaluation.inspector.recording import record
from hybridlm.evaluation.inspector.units import memory_units
from hybridlm.model.snapshot_hybridlm import fork

PLACES = {"0.4": (0, "0.s", 4), "0.17": (0, "1.s", 1), "2.5": (2, "0.s", 5), "3.3": (3, "0.s", 3)}
"""Name of a unit -> layer, name of the state in its cache, place in it; one for each kind. At token 20 of the text it
holds, with a state that is not 0 unless the unit is of the last kind."""
ROUNDING = 1e-12
"""Of the model in fp64, whose products have other shapes for other weights and calls."""
FROZEN = {"0.4": -1.0, "0.17": 4.0, "2.5": 0.75, "3.3": 1.0}


def read(model, ids):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([ids, ids[::-1]]), past_key_values=cache)
    return cache


def go_on(model, cache, ids):
    with torch.no_grad():
        return model(torch.tensor([ids, ids]), past_key_values=cache).logits


@pytest.mark.parametrize("names", [*([name] for name in PLACES), list(PLACES)])
@pytest.mark.parametrize("length", [1, 7])
def test_a_flip_is_a_state_changed_by_hand(every_kind, ids, names, length):
    before = read(every_kind, ids[:20])
    changed = fork(before)
    for name in names:
        layer, key, place = PLACES[name]
        state = changed.layers[layer].states[key][:, place]
        changed.layers[layer].states[key][:, place] = 1 - state if layer == 3 else -state
    flipped = fork(before)
    with intervene(every_kind, flips=names):
        first = go_on(every_kind, flipped, ids[20 : 20 + length])
        second = go_on(every_kind, flipped, ids[30:40])  # it is not flipped again
    assert torch.allclose(first, go_on(every_kind, changed, ids[20 : 20 + length]), rtol=0, atol=ROUNDING)
    assert torch.allclose(second, go_on(every_kind, changed, ids[30:40]), rtol=0, atol=ROUNDING)
    unchanged = go_on(every_kind, fork(before), ids[20 : 20 + length])
    assert not torch.allclose(first, unchanged, atol=1e-6)  # it does something


def test_a_layer_is_flipped_whole(every_kind, ids):
    before = read(every_kind, ids[:20])
    changed, flipped = fork(before), fork(before)
    for state in changed.layers[0].states.values():
        state.neg_()
    with intervene(every_kind, flips=["0"]):
        got = go_on(every_kind, flipped, ids[20:30])
    assert torch.allclose(got, go_on(every_kind, changed, ids[20:30]), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("steps", [1, 10])
def test_a_freeze_is_a_unit_that_cannot_write(every_kind, ids, given, steps):
    """The same as in a model whose weights let these units never write."""
    before = read(every_kind, ids[:20])
    still = copy.deepcopy(every_kind)
    cells = {"0.4": (0, 0), "0.17": (0, 1), "2.5": (2, 0), "3.3": (3, 0)}
    by_hand = fork(before)
    with torch.no_grad():
        for name, (layer, which) in cells.items():
            cell, place = still.model.layers[layer].mixer.cells[which], PLACES[name][2]
            maps = [(cell.drive, 0.5 * (cell.beta_lo + cell.beta_hi))] if layer == 3 else []
            for map_, bias in maps or [(cell.candidate, 0.0), (cell.threshold, 9.0)]:
                map_.weight[place], map_.bias[place] = 0.0, bias
            if given:
                by_hand.layers[layer].states[PLACES[name][1]][:, place] = FROZEN[name]
    frozen = fork(before)
    with intervene(every_kind, freezes=FROZEN if given else dict.fromkeys(FROZEN)):
        for first in range(20, 40, steps):
            got = go_on(every_kind, frozen, ids[first : first + steps])
            wanted = go_on(still, by_hand, ids[first : first + steps])
            assert torch.allclose(got, wanted, rtol=0, atol=ROUNDING)
            for name, (layer, key, place) in PLACES.items():
                start = before.layers[layer].states[key][:, place]
                value = torch.full_like(start, FROZEN[name]) if given else start
                assert torch.equal(frozen.layers[layer].states[key][:, place], value)


def test_generating_with_a_frozen_unit(build):
    model = build("rglru bmru")
    start = torch.tensor([[5, 6, 7]])
    with intervene(model, freezes={"1.4": 1}, flips=["1.5"]):
        out = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=20,
            do_sample=False,
            return_dict_in_generate=True,
            eos_token_id=None,
        )
    assert out.past_key_values.layers[1].states["0.s"][0, 4] == 1
    with intervene(model, freezes={"1.4": -1}):
        assert not record(model, [5, 6, 7] * 9).written()[4].any()
        assert (record(model, [5, 6, 7] * 9).signs()[4] == -1).all()


def test_nothing_is_left_behind(every_kind, ids):
    batch = torch.tensor([ids])
    with torch.no_grad():
        before = every_kind(batch).logits
        with intervene(every_kind, flips=["0"], freezes={"2": None, "3.1": 1}):
            assert not torch.equal(every_kind(batch).logits, before)
        with pytest.raises(KeyError), intervene(every_kind, flips=["0"], freezes={"2": None}):
            raise KeyError
        assert torch.equal(every_kind(batch).logits, before)
    for module in every_kind.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("flips", "freezes", "message"),
    [
        (["4.0"], {}, r"unit 4\.0: there is none of that name"),
        (["one"], {}, "not of the form LAYER.UNIT"),
        (["0.4", "0.4"], {}, r"unit 0\.4: it is named twice"),
        (["0"], {"0.4": 1}, r"unit 0\.4: it is named twice"),
        ([], {"0.4": 0}, r"unit 0\.4=0: the state of a bmru is -1 or \+1"),
        ([], {"0.17": 0.5}, r"the state of a cmru is a whole number"),
        ([], {"2.1": float("nan")}, r"the state of a acmru is a finite number"),
        ([], {"3": -1}, r"unit 3=-1: the state of a fqbmru is 0 or 1"),
    ],
)
def test_what_cannot_be_done_is_refused(every_kind, flips, freezes, message):
    with pytest.raises(UserError, match=message), intervene(every_kind, flips=flips, freezes=freezes):
        pytest.fail("entered")
    assert not any(cell.cell._forward_pre_hooks for cell in memory_units(every_kind))


def test_packed_documents_are_refused_where_a_unit_is_frozen(build):
    model = build("bmru")
    packed = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    with intervene(model, freezes={"0.1": 1}), pytest.raises(ValueError, match="Give each document a row of its own"):
        model(**packed)
