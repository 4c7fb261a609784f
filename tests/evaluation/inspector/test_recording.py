"""What is kept of a text is what single steps leave in the cache, and nothing is left on the model."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector import recording
from hybridlm.evaluation.inspector.recording import record
from hybridlm.evaluation.inspector.units import locate_units, memory_units
from hybridlm.evaluation.inspector.watching import watch

STATES = [(0, "0.s"), (0, "1.s"), (2, "0.s"), (3, "0.s")]
"""Where the cache of the model of every kind holds the states of memory units."""


def single_steps(model, ids):
    """(units, tokens) signs and writes, from the cache and from the model's own counts."""
    signs, writes = [], []
    model.record_writes(False, counts=True)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for token in ids:
            model(torch.tensor([[token]]), past_key_values=cache)
            signs.append(torch.cat([cache.layers[layer].states[name][0] for layer, name in STATES]).sign())
            writes.append(torch.cat([each.writes for each in model.write_counts()]))
    model.record_writes(False)
    return torch.stack(signs, 1).numpy(), torch.stack(writes, 1).numpy()


@pytest.mark.parametrize("call", [16, 1024])
def test_states_and_writes_are_those_of_single_steps(every_kind, ids, monkeypatch, call):
    monkeypatch.setattr(recording, "CALL", call)
    told = []
    found = record(every_kind, ids, progress=lambda *where: told.append(where))
    signs, writes = single_steps(every_kind, ids)
    assert np.array_equal(found.signs(), signs)
    assert np.array_equal(found.written(), writes)
    assert 0.05 < writes.mean() < 0.95
    assert set(np.unique(signs)) == {-1, 0, 1}
    assert found.names[:17] == [f"0.{unit}" for unit in range(17)]
    assert found.names[-1] == "3.15"
    assert found.kinds[15:17] == ["bmru", "cmru"]
    assert told[-1] == (len(ids), 1.0)
    s0 = every_kind.model.layers[0].mixer.cells[0].s0
    assert np.array_equal(found.start[:16], s0.sign().numpy())
    assert not found.start[16:].any()


def test_bistable_units_need_two_bits(build, ids):
    found = record(build("bmru", hidden_size=16), ids)
    assert found.zero is None
    assert found.positive.shape == found.writes.shape == (16, 8)


def traces(model):
    return [
        (sorted(cell.cell.__dict__), cell.cell.count_writes, len(cell.cell._forward_hooks))
        for cell in memory_units(model)
    ]


def test_nothing_is_left_on_the_model(every_kind, ids):
    before = traces(every_kind)
    record(every_kind, ids)
    assert traces(every_kind) == before
    cells = memory_units(every_kind)
    with pytest.raises(KeyError), watch(cells, lambda *_: None), watch(cells, lambda *_: None):
        raise KeyError
    assert traces(every_kind) == before


def test_what_the_model_counts_itself_is_not_disturbed(every_kind, ids):
    batch = torch.tensor([ids])
    every_kind.record_writes(counts=True)
    every_kind(batch)
    wanted, penalty = every_kind.write_counts(), every_kind.write_penalty()
    every_kind.record_writes(counts=True)
    seen = []
    with watch(memory_units(every_kind), lambda index, s, z: seen.append((index, z.sum((0, 1))))):
        every_kind(batch)
    assert every_kind.write_penalty() == penalty
    for count, (_, writes) in zip(every_kind.write_counts(), seen, strict=True):
        assert torch.equal(count.writes, writes)
    assert [count.writes.tolist() for count in every_kind.write_counts()] == [each.writes.tolist() for each in wanted]


def test_states_that_are_no_numbers(build, ids):
    model = build("bmru")
    with torch.no_grad():
        model.model.layers[0].mixer.cells[0].candidate.bias[3] = torch.nan
    with pytest.raises(UserError, match=r"layer 0: states are not finite in torch\.float32"):
        record(model, ids)


def test_names_of_units(every_kind, build):
    cells = memory_units(every_kind)
    assert locate_units(cells, " 0.17 ") == [(cells[1], 1)]
    assert locate_units(cells, "3") == [(cells[3], place) for place in range(16)]
    assert len(locate_units(cells, "0")) == 32
    refused = {"0.32": r"0\.0 to 0\.15 \(bmru\); 0\.16 to 0\.31 \(cmru\)", "1.0": "none of that name", "x": "LAYER"}
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            locate_units(cells, name)
    with pytest.raises(UserError, match="pattern='lru attention': the model has no memory unit"):
        memory_units(build("lru attention"))
