"""Selective copying and MQAR: every row answered by reading it, and the distributions that define them."""

from collections import Counter

import pytest
import torch

from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.task import IGNORED


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(batch):
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    return zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)


def walk_copying(batch, data, kinds, stretch):
    """Per row the positions of its data symbols."""
    found = []
    for symbols, targets in rows_of(batch):
        assert len(symbols) == stretch + data
        assert symbols[stretch:] == [kinds + 1] * data
        assert set(symbols[:stretch]) <= set(range(kinds + 1))
        where = [t for t in range(stretch) if symbols[t] != 0]
        assert targets == [IGNORED] * stretch + [symbols[t] - 1 for t in where]
        assert len(where) == data
        found.append(where)
    return found


@pytest.mark.parametrize(("quick", "data", "kinds", "stretch"), [(True, 8, 8, 64), (False, 16, 14, 256)])
def test_selective_copying_asks_for_the_data_in_order(quick, data, kinds, stretch):
    task = TASKS["selective_copying"](quick)
    assert (task.inputs, task.outputs) == (kinds + 2, kinds)
    walk_copying(task.batch(16, seeded()), data, kinds, stretch)
    for test, factor in zip(task.tests(), (1, 4, 16), strict=True):
        assert (test.name, test.length) == (f"{factor}x", factor * stretch + data)
        walk_copying(test.make(4, seeded()), data, kinds, factor * stretch)


def test_selective_copying_is_uniform_over_symbols_and_positions():
    batch = TASKS["selective_copying"](True).batch(4000, seeded())
    places = Counter(t for where in walk_copying(batch, 8, 8, 64) for t in where)
    assert all(abs(places[t] - 500) < 5 * 500**0.5 for t in range(64))
    classes = Counter(batch.targets[batch.targets != IGNORED].tolist())
    assert sorted(classes) == list(range(8))
    assert all(abs(count - 4000) < 5 * 4000**0.5 for count in classes.values())


def walk_mqar(batch, symbols, pairs, steps):
    """Per row the slots at which its keys are asked, in the order of the pairs."""
    found = []
    for inputs, targets in rows_of(batch):
        assert len(inputs) == steps
        assert set(inputs) <= set(range(symbols))
        table = {inputs[2 * i]: inputs[2 * i + 1] for i in range(pairs)}
        assert len(set(table)) == len(set(table.values())) == pairs
        assert set(table) <= set(range(1, symbols // 2))
        assert set(table.values()) <= set(range(symbols // 2, symbols))
        asked = {inputs[t]: t for t in range(steps) if targets[t] != IGNORED}
        assert set(asked) == set(table)
        assert sum(target != IGNORED for target in targets) == pairs
        assert all(targets[t] == table[key] for key, t in asked.items())
        assert all(t >= 2 * pairs and t % 2 == 0 for t in asked.values())
        found.append([(asked[key] - 2 * pairs) // 2 for key in table])
    return found


@pytest.mark.parametrize(("quick", "symbols", "pairs", "steps"), [(True, 64, 4, 64), (False, 512, 16, 128)])
def test_mqar_asks_for_each_value_once(quick, symbols, pairs, steps):
    task = TASKS["mqar"](quick)
    assert task.inputs == task.outputs == symbols
    walk_mqar(task.batch(64, seeded()), symbols, pairs, steps)
    conditions = {"1x": (1, 1), "4x": (4, 1), "2x pairs": (4, 2)}
    for test, (name, (longer, more)) in zip(task.tests(), conditions.items(), strict=True):
        assert (test.name, test.length) == (name, longer * steps)
        walk_mqar(test.make(16, seeded()), symbols, more * pairs, longer * steps)


def test_mqar_draws_slots_by_a_power_law_without_replacement():
    rows = 10_000
    slots = walk_mqar(TASKS["mqar"](True).batch(rows, seeded()), 64, 4, 64)
    weights = [(s + 1) ** (0.01 - 1.0) for s in range(28)]
    p = [weight / sum(weights) for weight in weights]
    second = [sum(p[i] * p[j] / (1 - p[i]) for i in range(28) if i != j) for j in range(28)]
    for place, expected in ((0, p), (1, second)):
        counts = Counter(row[place] for row in slots)
        for s in range(28):
            assert abs(counts[s] - rows * expected[s]) < 5 * (rows * expected[s]) ** 0.5


def test_mqar_fills_the_rest_with_any_symbol():
    """Behind a query as well: the value is not given away there."""
    batch = TASKS["mqar"](True).batch(4000, seeded())
    asked = batch.targets != IGNORED
    rest = ~asked
    rest[:, :8] = False
    counts = torch.bincount(batch.inputs[rest], minlength=64)
    expected = int(rest.sum()) / 64
    assert (counts - expected).abs().max() < 5 * expected**0.5
    behind = batch.inputs[:, 1:][asked[:, :-1]]
    given_away = (behind == batch.targets[asked]).double().mean().item()
    assert given_away == pytest.approx(1 / 64, abs=0.005)


@pytest.mark.parametrize("name", ["selective_copying", "mqar"])
def test_the_seed_decides_the_batch(name):
    first, again, other = (TASKS[name](True).batch(4, seeded(seed)) for seed in (3, 3, 4))
    assert first.inputs.equal(again.inputs)
    assert first.targets.equal(again.targets)
    assert not first.inputs.equal(other.inputs)
