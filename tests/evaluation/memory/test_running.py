"""How a test counts errors, with a model that errs exactly where it is told to."""

import json

import pytest
import torch

from hybridlm.evaluation.memory import running
from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.formal import Parity
from hybridlm.evaluation.memory.recipe import Recipe
from hybridlm.evaluation.memory.running import CHUNK, TOKENS_AT_ONCE, measure, run, to_first_error
from hybridlm.evaluation.memory.task import IGNORED, Batch, Test


class Erring:
    """Answers right, besides at given places. An input is its row's number; the cache is how far the test has come."""

    grows = False
    device = torch.device("cpu")

    def __init__(self, errors):
        self.errors, self.chunks = errors, []

    def eval(self):
        return self

    def cache(self):
        return [0]

    def __call__(self, inputs, cache):
        begin = 0 if cache is None else cache[0]
        length = inputs.shape[1]
        self.chunks.append((begin, begin + length))
        if cache is not None:
            cache[0] += length
        answers = torch.zeros(*inputs.shape, 2)
        answers[..., 0] = 1.0
        for place, row in enumerate(inputs[:, 0].tolist()):
            for step in self.errors.get(row, ()):
                if begin <= step - 1 < begin + length:
                    answers[place, step - 1 - begin, 1] = 2.0
        return answers


def numbered(length, rows, failing=True):
    """A test whose right answers are all 0. Rows are numbered through its parts; steps of errors count from 1."""
    made = [0]

    def make(part, _):
        numbers = torch.arange(made[0], made[0] + part)[:, None].expand(part, length)
        made[0] += part
        return Batch(numbers, torch.zeros(part, length, dtype=torch.int64))

    return Test("numbered", length, rows, make, failing)


ROWS = 512
STEP = min(CHUNK, TOKENS_AT_ONCE // ROWS)
"""Steps of 512 rows that run in one forward."""


@pytest.mark.parametrize("last", [1, 2, STEP - 1, STEP, STEP + 1, 2 * STEP, 2 * STEP + 1, 3 * STEP + 17, 10 * STEP])
def test_failing_length_is_where_a_row_too_many_errs(last):
    """With 51 of 512 rows wrong 461 are right, 90.04 %; the 52nd error is the first length below 90 %."""
    errors = {row: [1 + row * (last - 1) // 51] for row in range(51)}
    errors |= {100: [last], 200: [last + 1], 300: [last + 5 * STEP]}
    right = [sum(min(steps) > length for steps in errors.values()) + ROWS - len(errors) for length in range(last + 1)]
    below = [length for length, count in enumerate(right) if count < 0.9 * ROWS]
    model = Erring(errors)
    found = measure(model, numbered(10 * STEP, ROWS), 0)
    assert below[0] == found["failing"] == last
    assert found["first_errors"] == sorted(min(steps) for steps in errors.values())[:52]
    assert "right" not in found
    assert model.chunks == [(begin, begin + STEP) for begin in range(0, last, STEP)]
    seen = model.chunks[-1][1]
    assert found["asked"] == ROWS * seen
    assert found["wrong"] == sum(step <= seen for steps in errors.values() for step in steps)


def test_a_row_counts_once_however_often_it_errs():
    """51 rows that always err do not fail: their first errors alone count."""
    length = 4 * STEP
    errors = {row: range(1, length + 1) for row in range(51)}
    found = measure(Erring(errors), numbered(length, ROWS), 0)
    assert found["failing"] is None
    assert (found["asked"], found["wrong"], found["right"]) == (ROWS * length, 51 * length, ROWS - 51)
    assert found["first_errors"] == [1] * 51


def test_no_failing_length_without_errors():
    found = measure(Erring({}), numbered(3 * STEP + 5, ROWS), 0)
    assert found["failing"] is None
    assert found["first_errors"] == []
    assert (found["asked"], found["wrong"], found["right"]) == (ROWS * (3 * STEP + 5), 0, ROWS)


@pytest.mark.parametrize("rows", [1, 9, 10, 19, 20, 512])
def test_a_tenth_of_the_rows_may_err(rows):
    """Exactly nine in ten right is not a failure; one row more is."""
    allowed = rows // 10
    for count, failing in ((allowed, None), (allowed + 1, 7)):
        errors = {row: [7] for row in range(count)}
        assert measure(Erring(errors), numbered(32, rows), 0)["failing"] == failing


def test_rows_in_parts_are_all_counted():
    """A long test that does not stop early draws its rows in parts; right rows are summed over them."""
    rows, length = 40, TOKENS_AT_ONCE
    errors = {0: [1], 3: [5, length], 17: [CHUNK, CHUNK + 1], 39: [length]}
    found = measure(Erring(errors), numbered(length, rows, failing=False), 0)
    assert found == {
        "name": "numbered", "length": length, "rows": rows,
        "asked": rows * length, "wrong": 6, "right": rows - 4,
    }  # fmt: skip


def test_failing_length_of_rows_in_parts(monkeypatch):
    """Rows that are made later count as the first ones do, also where their errors are earlier, and in other chunks."""
    rows, length = 40, 4 * CHUNK
    monkeypatch.setattr(running, "TOKENS_MADE", 16 * length)
    early, late = CHUNK + 7, 3 * CHUNK + 9
    errors = {0: [late], 1: [late], 2: [late + 1], 3: [late + 2], 4: [late + 3]}
    assert measure(Erring(errors), numbered(length, rows), 0)["failing"] == late + 3
    errors = {**errors, 20: [early], 21: [3], 38: [early + 1]}
    assert measure(Erring(errors), numbered(length, rows), 0)["failing"] == late
    errors = {**errors, 37: [early], 39: [early]}
    assert measure(Erring(errors), numbered(length, rows), 0)["failing"] == early + 1


def test_longest(monkeypatch):
    """The failing length is looked for up to any length."""
    monkeypatch.setattr(running, "measure", lambda model, test, seed: {"length": test.length})
    monkeypatch.setattr(running, "train", lambda *_: 0.0)
    found = run(Parity(quick=True), "lru", 0, Recipe(width=8, longest=10_000))
    assert [test["length"] for test in found["tests"]] == [64, 10_000]


def test_short_sequences_are_more(monkeypatch):
    """A step has as many letters at any length, up to rounding down to whole sequences."""
    task, shapes = Parity(quick=True), []
    of_length = task.of_length
    monkeypatch.setattr(task, "of_length", lambda *given: shapes.append(given[:2]) or of_length(*given))
    task.tests = lambda longest: []
    run(task, "lru", 0, Recipe(steps=8, width=8, length_start=4, length_full=0.5))
    assert shapes == [(4, 256), (8, 128), (16, 64), (32, 32), *[(64, 16)] * 4]


def test_to_first_error():
    """What stands behind a row's first wrong answer is not asked; the wrong answer is."""
    said = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
    targets = torch.tensor([[0, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [IGNORED, IGNORED, 1, 1]])
    kept = torch.tensor([[0, 0, IGNORED, IGNORED], [1, 1, 1, 1], [1, *[IGNORED] * 3], [IGNORED, IGNORED, 1, IGNORED]])
    assert torch.equal(to_first_error(torch.nn.functional.one_hot(said).float(), targets), kept)


def test_training_to_the_first_error_is_another_training():
    task = Parity(quick=True)
    task.tests = lambda longest: []
    recipes = [Recipe(steps=3, width=8, to_first_error=to) for to in (False, True)]
    first, other = [run(task, "lru", 0, recipe)["loss"] for recipe in recipes]
    assert first != other


@pytest.mark.parametrize(("task", "found"), [(CopyFirst, ("mse", None)), (CopyFirstSymbol, ("wrong", 256))])
def test_a_model_that_is_no_number_diverged_and_is_never_right(task, found):
    """Also where only the last step made it so, whose loss was still finite."""
    result = run(task(50, quick=True), "lru", 0, Recipe(steps=1, width=8, weight_decay=1e300))
    assert result["loss"] is None
    name, value = found
    assert result["tests"][0][name] == value
    json.dumps(result, allow_nan=False)
