"""The corridors: every row walked in plain Python."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hybridlm.evaluation.memory.corridor import Corridor, CorridorTwo
from hybridlm.evaluation.memory.task import IGNORED, Batch

BLANK = 4


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return list(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True))


def told(symbols: list[int]) -> list[int]:
    """The answers of a row, at each position, for both kinds of query."""
    first, last, answers = symbols[0], None, []
    for symbol in symbols:
        if 5 <= symbol <= 8:
            last = symbol - 5
        answers.append({9: first, 10: last}.get(symbol, IGNORED))
    return answers


def test_the_query_asks_for_the_cue_and_nothing_else_tells_it() -> None:
    for symbols, targets in rows_of(Corridor().make(30, 200, drawn(0))):
        assert symbols[0] in range(4)
        assert symbols[1:] == [BLANK] * 30 + [5]
        assert targets == [IGNORED] * 31 + [symbols[0]]


def test_training_draws_every_length_up_to_50() -> None:
    for task, besides in ((Corridor(quick=True), 2), (CorridorTwo(quick=True), 3)):
        generator = drawn(1)
        lengths = {task.batch(2, generator).inputs.shape[1] - besides for _ in range(600)}
        assert lengths == set(range(1, 51))


def test_both_queries_ask_for_what_was_told() -> None:
    order = Counter()
    for steps in (1, 2, 40):
        for symbols, targets in rows_of(CorridorTwo().make(steps, 300, drawn(2))):
            assert symbols[0] in range(4)
            corridor, queries = symbols[1:-2], symbols[-2:]
            assert len(corridor) == steps
            assert set(corridor) <= {4, 5, 6, 7, 8}
            assert set(corridor) != {BLANK}, "a corridor without a further cue"
            assert sorted(queries) == [9, 10]
            assert targets == told(symbols)
            order[queries[0]] += 1
    assert abs(order[9] - 450) < 60


def test_a_tenth_of_the_steps_are_further_cues() -> None:
    inputs = CorridorTwo().make(500, 200, drawn(3)).inputs[:, 1:-2]
    assert abs((inputs != BLANK).float().mean().item() - 0.1) < 0.005


def test_where_there_is_one_further_cue_it_is_at_every_step_alike() -> None:
    places = Counter()
    for symbols, _ in rows_of(CorridorTwo().make(2, 4000, drawn(4))):
        seen = [place for place, symbol in enumerate(symbols[1:-2]) if symbol != BLANK]
        if len(seen) == 1:
            places[seen[0]] += 1
    assert abs(places[0] - places[1]) < 0.1 * sum(places.values())


def test_the_tests_ask_for_one_of_the_two() -> None:
    last, first, *_ = CorridorTwo().tests()
    assert (last.name, first.name) == ("1x last", "1x first")
    one, other = first.make(50, drawn(5)), last.make(50, drawn(5))
    assert torch.equal(one.inputs, other.inputs)
    for symbols, targets, others in zip(one.inputs.tolist(), one.targets.tolist(), other.targets.tolist(), strict=True):
        answers = told(symbols)
        assert targets == [answer if symbol == 9 else IGNORED for symbol, answer in zip(symbols, answers, strict=True)]
        assert others == [answer if symbol == 10 else IGNORED for symbol, answer in zip(symbols, answers, strict=True)]


@pytest.mark.parametrize("make", [Corridor, CorridorTwo])
def test_the_answers_are_balanced(make: type[Corridor]) -> None:
    for test in make().tests()[:2]:
        targets = test.make(4000, drawn(6)).targets
        counts = Counter(targets[targets != IGNORED].tolist())
        assert set(counts) == {0, 1, 2, 3}
        assert all(abs(count - 1000) < 120 for count in counts.values())


@pytest.mark.parametrize("make", [Corridor, CorridorTwo])
@pytest.mark.parametrize("quick", [True, False])
def test_the_tests_are_as_long_as_their_names_say(make: type[Corridor], quick: bool) -> None:
    task = make(quick)
    assert any(test.name.startswith("1000x") for test in task.tests()) == (not quick)
    for test in task.tests():
        batch = test.make(1, drawn(7))
        assert batch.inputs.shape == batch.targets.shape == (1, test.length)
        corridor = batch.inputs.shape[1] - (2 if make is Corridor else 3)
        assert corridor == 50 * int(test.name.split("x")[0])
        assert int(batch.inputs.max()) < task.inputs


@pytest.mark.parametrize("make", [Corridor, CorridorTwo])
def test_a_seed_gives_one_batch(make: type[Corridor]) -> None:
    one, again, other = (make().batch(64, drawn(seed)) for seed in (8, 8, 9))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    assert not (one.inputs.shape == other.inputs.shape and torch.equal(one.inputs, other.inputs))
