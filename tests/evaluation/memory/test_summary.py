"""Scores over seeds, against numbers worked out by hand."""

import ast
import math
from pathlib import Path

import pytest
from memory_records import TOO_LONG, errors, failing, record, skipped, squares

from hybridlm.errors import UserError
from hybridlm.evaluation.memory import commands, families, page, panels, pictures, summary, table
from hybridlm.evaluation.memory.summary import summarize, wilson


def score(*tests, losses=None):
    """The score of a test that seeds 0, 1, ... had."""
    losses = losses or [0.1] * len(tests)
    records = [record([test], seed=seed, loss=losses[seed]) for seed, test in enumerate(tests)]
    (group,) = summarize(records)
    return group.scores[tests[0]["name"]]


def test_an_error_rate_is_the_mean_over_seeds_with_smallest_and_largest():
    found = score(errors("1x", 51, 10, 100), errors("1x", 51, 30, 100), errors("1x", 51, 5, 50))
    assert found.kind == "error rate"
    assert found.values == (0.1, 0.3, 0.1)
    assert (found.middle, found.low, found.high) == (pytest.approx(0.5 / 3), 0.1, 0.3)
    assert (found.best, found.worst) == (0.1, 0.3)
    assert (found.wrong, found.asked) == (45, 250)


def test_a_squared_error_that_is_no_number_is_infinite():
    assert score(squares("10x", 501, 0.5), squares("10x", 501, 1.5)).middle == 1.0
    for broken in (math.nan, math.inf, None):
        assert score(squares("10x", 501, broken)).values == (math.inf,)


@pytest.mark.parametrize(
    ("lengths", "middle"),
    [
        ([186], 186),
        ([300, 100, 200], 200),
        ([100, 200], 100),
        ([100, None], 100),
        ([100, None, None], math.inf),
        ([None, 7, 50, None], 50),
    ],
)
def test_a_failing_length_is_the_median_and_never_failing_is_longer_than_all(lengths, middle):
    found = score(*map(failing, lengths))
    assert found.kind == "failing length"
    assert found.middle == middle
    assert found.length == 32_768
    assert found.best == max(math.inf if length is None else length for length in lengths)
    assert found.worst == min(math.inf if length is None else length for length in lengths)


def test_wilson_against_values_worked_out_by_hand():
    # 1 of 10, z^2 = 3.8415: centre (0.1 + 0.19207) / 1.38415 = 0.21101; half 1.95996 sqrt(0.009 + 0.0096037) / 1.38415
    assert wilson(1, 10) == pytest.approx((0.017876, 0.404150), abs=2e-6)
    # 0 of n: from 0 to z^2 / (n + z^2)
    assert wilson(0, 10) == (0.0, pytest.approx(3.841459 / 13.841459, abs=1e-7))
    assert wilson(10, 10) == (pytest.approx(10 / 13.841459, abs=1e-7), 1.0)


def test_the_interval_is_over_pooled_counts_and_only_where_positions_are_many():
    many = score(errors("sparse", 512, 1, 6, rows=2), errors("sparse", 512, 0, 4, rows=2))
    assert many.interval == pytest.approx((0.017876, 0.404150), abs=2e-6)
    assert score(errors("1x", 51, 1, 10)).interval is None
    assert score(squares("1x", 51, 0.1)).interval is None


def test_diverged_runs_are_counted_and_not_averaged():
    found = score(errors("1x", 51, 10, 100), errors("1x", 51, 100, 100), losses=[0.1, None])
    assert (found.values, found.diverged) == ((0.1,), 1)
    (group,) = summarize([record([errors("1x", 51, 1)], seed=s, loss=None if s else 0.1) for s in (0, 3)])
    assert (group.seeds, group.diverged) == ((0, 3), (3,))
    lost = score(errors("1x", 51, 10, 100), losses=[None])
    assert (lost.kind, lost.values, lost.diverged) == (None, (), 1)


def test_a_skipped_test_says_why_and_one_that_asked_nothing_has_no_value():
    found = score(skipped("100x", 60_001))
    assert (found.kind, found.values, found.skipped, found.diverged) == (None, (), TOO_LONG, 0)
    assert score(errors("1x", 51, 0, 0)).values == ()
    partly = score(skipped("100x", 60_001), squares("100x", 60_001, 0.5))
    assert (partly.values, partly.skipped) == ((0.5,), None)


def test_of_the_same_run_twice_the_later_one_counts():
    (group,) = summarize([record([errors("1x", 51, wrong, 10)], seed=0) for wrong in (9, 1)])
    assert group.scores["1x"].values == (0.1,)
    assert group.seeds == (0,)


def test_runs_of_an_earlier_budget_are_not_averaged_with_those_of_a_later():
    made = [record([errors("1x", 51, 9, 10)], seed=seed, settings={"steps": 300}) for seed in (0, 1)]
    made += [record([errors("1x", 51, 1, 10)], seed=seed, settings={"steps": 400}) for seed in (1, 2)]
    (group,) = summarize(made)
    assert group.seeds == (1, 2)
    assert group.scores["1x"].values == (0.1, 0.1)


def test_groups_are_of_task_form_mixer_and_change_in_the_tables_order():
    one = [errors("1x", 51, 1)]
    made = [
        record(one, mixer="unheard"),
        record(one, mixer="lru bmru"),
        record(one, mixer="bmru", changed={"lr": 0.001, "threshold_init": 0.25}),
        record(one, mixer="bmru", changed={"threshold_init": 0.25, "lr": 0.001}, seed=1),
        record(one, mixer="bmru", form="standard"),
        record(one, mixer="bmru"),
        record(one, task="zebra"),
        record(one, task="parity"),
        record(one, task="copy_first_symbol_50"),
        record(one, task="copy_first_600"),
        record(one, task="copy_first_100"),
    ]
    found = [(group.task, group.form, group.mixer, group.change) for group in summarize(made)]
    assert found == [
        ("copy_first_50", "quick", "bmru", ""),
        ("copy_first_50", "quick", "bmru", "lr=0.001, threshold_init=0.25"),
        ("copy_first_50", "quick", "lru bmru", ""),
        ("copy_first_50", "quick", "unheard", ""),
        ("copy_first_50", "standard", "bmru", ""),
        ("copy_first_100", "quick", "bmru", ""),
        ("copy_first_600", "quick", "bmru", ""),
        ("copy_first_symbol_50", "quick", "bmru", ""),
        ("parity", "quick", "bmru", ""),
        ("zebra", "quick", "bmru", ""),
    ]
    assert summarize(made)[1].seeds == (0, 1)


def test_a_record_without_a_field_is_refused():
    broken = record([errors("1x", 51, 1)])
    del broken["mixer"]
    with pytest.raises(UserError, match="record 2: it has no field 'mixer'"):
        summarize([record([errors("1x", 51, 1)]), broken])


@pytest.mark.parametrize("module", [families, summary, table, panels, pictures, commands, page])
def test_torch_and_matplotlib_wait_until_they_are_needed(module):
    at_once = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    froms = [node.module for node in at_once if isinstance(node, ast.ImportFrom)]
    names = froms + [name.name for node in at_once if isinstance(node, ast.Import) for name in node.names]
    heavy = {"torch", "transformers", "matplotlib"}
    assert not [name for name in names if name.split(".")[0] in heavy or name.endswith(("registry", "task", "running"))]
