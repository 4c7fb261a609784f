"""Cells and tables, against texts written by hand."""

import math

import pytest
from memory_records import TOO_LONG, errors, failing, record, skipped, squares

from hybridlm.evaluation.memory.summary import summarize
from hybridlm.evaluation.memory.table import (
    BEST,
    DIVERGED,
    all_tables,
    change_table,
    counts_table,
    failing_table,
    length_text,
    number,
    overview_table,
    shared_table,
    task_table,
)


@pytest.fixture
def copying():
    """Two mixers with two seeds, one that partly diverged, one all of whose runs did, one that skips, one left out."""
    made = []
    for seed, (first, second) in enumerate([(0.01, 0.5), (0.03, 0.7)]):
        made += [
            record([squares("1x", 51, first), squares("100x", 5001, second)], mixer="bmru", seed=seed),
            record([squares("1x", 51, 0.5), squares("100x", 5001, 0.6)], mixer="lru", seed=seed),
            record([squares("1x", 51, 0.9)], mixer="mingru", seed=seed, loss=0.1 if seed else None),
            record([squares("1x", 51, 0.9)], mixer="gru", seed=seed, loss=None),
            record([squares("1x", 51, 0.8), skipped("100x", 5001)], mixer="attention", seed=seed),
        ]
    return summarize(made)


def test_a_task_as_markdown(copying):
    lines = task_table(copying).markdown().splitlines()
    assert lines == [
        "| mixer: squared error | 1x | 100x |",
        "|---|---:|---:|",
        "| bmru | **0.020 (0.010 – 0.030)** | 0.600 (0.500 – 0.700) |",
        "| lru | 0.500 | 0.600 |",
        "| mingru | 0.900 †1 | - |",
        "| attention | 0.800 | n/a <sup>1</sup> |",
        "| gru | diverged | - |",
        "",
        f"1. {TOO_LONG}",
        "",
        BEST,
        "",
        DIVERGED,
    ]
    assert task_table(copying).markdown(legend=False).splitlines() == lines[:9]


def test_a_task_as_plain_text(copying):
    assert task_table(copying).plain().splitlines()[:7] == [
        "mixer: squared error                       1x                   100x",
        "bmru                  0.020 (0.010 – 0.030) *  0.600 (0.500 – 0.700)",
        "lru                                     0.500                  0.600",
        "mingru                               0.900 †1                      -",
        "attention                               0.800                n/a [1]",
        "gru                                  diverged                      -",
        f"[1] {TOO_LONG}",
    ]


def bold(*mixers, test=errors):
    """The bold ones of mixers m0, m1, ..., each given as its seeds' values."""
    made = [
        record([test("1x", 10, value) if test is errors else test(value)], mixer=f"m{number}", seed=seed)
        for number, values in enumerate(mixers)
        for seed, value in enumerate(values)
    ]
    table = task_table(summarize(made))
    return [row[0].text for row in table.rows if row[1].bold]


def test_bold_is_what_is_clearly_best():
    assert bold([1, 2], [3, 4]) == ["m0"]
    assert bold([1, 3], [2, 4]) == []
    assert bold([1, 2], [2, 4]) == []
    assert bold([0, 0], [0, 0], [1, 1]) == ["m0", "m1"]
    assert bold([0, 0], [0, 0]) == []
    assert bold([0, 3], [0, 3], [4, 4]) == ["m0", "m1"]
    assert bold([0, 1, 3], [0, 2, 3], [4, 4]) == []
    assert bold([1], [3]) == []
    assert bold([5, 6], [1, 2], [1, 1]) == []


def test_the_longest_failing_length_is_best():
    assert bold([100, 200], [300, None], test=failing) == ["m1"]
    assert bold([100, None], [300, None], test=failing) == []
    assert bold([None, None], [None, None], [99, 99], test=failing) == ["m0", "m1"]


def test_a_mixer_followed_less_far_is_not_known_to_be_best_or_behind():
    """As attention, whose tests for failing lengths end early."""

    def bold_beside_attention(*seeds):
        made = [record([failing(None, 4096)], task="s3", mixer="attention", seed=seed) for seed in (0, 1)]
        made += [record([failing(value)], task="s3", mixer="bmru", seed=seed) for seed, value in enumerate(seeds)]
        made += [record([failing(9)], task="s3", mixer="lru", seed=seed) for seed in (0, 1)]
        return [row[0].text for row in failing_table(summarize(made)).rows if row[1].bold]

    assert bold_beside_attention(20_000, 30_000) == []
    assert bold_beside_attention(100, 200) == []
    assert bold_beside_attention(None, None) == []


def test_a_mixer_with_diverged_runs_is_not_bold():
    made = [record([errors("1x", 10, 0)], mixer="a", seed=seed, loss=0.1 if seed else None) for seed in range(3)]
    made += [record([errors("1x", 10, 9)], mixer="b", seed=seed) for seed in range(3)]
    assert [row[1].bold for row in task_table(summarize(made)).rows] == [False, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1.23e-5, "1.2e-5"), (0.000999, "1.0e-3"), (0.00123, "0.001"), (0.9876, "0.988"), (1, "1"),
        (1.234, "1.23"), (56.78, "56.8"), (1234.5, "1234"), (123_456, "1.2e5"), (math.inf, "∞"),
    ],
)  # fmt: skip
def test_numbers_are_compact(value, text):
    assert number(value) == text


def test_failing_lengths_across_tasks_stand_beside_published_ones():
    made = [
        record([errors("1x", 64, 1), failing(length, name="failing length")], task, mixer, seed)
        for task, mixer, lengths in [
            ("z2", "bmru", (100, 300, 200)),
            ("z2", "lru", (None, 40_000 - 8_000, None)),
            ("parity", "bmru", (12, 12, 12)),
            ("a5", "bmru", (9, 9, 9)),
        ]
        for seed, length in enumerate(lengths)
    ]
    lines = failing_table(summarize(made)).markdown(legend=False).splitlines()
    assert lines[0] == "| mixer: failing length | parity | z2 | a5 |"
    assert lines[2:5] == [
        "| bmru | 12 | 200 (100 – 300) | 9 |",
        "| lru | - | **> 32,768 (32,000 – > 32,768)** | - |",
        "| Mamba variant, published | - | 4,352 | never learnt |",
    ]
    assert "Liège" in lines[-1]
    assert length_text(math.inf, 8192) == "> 8,192"
    assert task_table(summarize(made)[:1], failing=False).header == ["mixer: error rate", "1x"]


def test_tasks_with_one_test_each_share_a_table():
    both = [record([errors("test", 784, 1, 10)], "mnist"), record([errors("1x", 784, 2, 10)], "mnist_blank")]
    assert shared_table(summarize(both)).markdown().splitlines() == [
        "| mixer: error rate | mnist | mnist_blank, 1x |",
        "|---|---:|---:|",
        "| bmru | 0.100 | 0.200 |",
    ]
    assert shared_table(summarize(both[:1])) is None
    more = record([errors("1x", 784, 1), errors("2x", 784, 1)], "mnist_permuted")
    assert shared_table(summarize([*both, more])) is None
    assert failing_table(summarize(both)) is None
    only = summarize([record([failing(5)], "z2")])
    assert task_table(only, failing=False) is None


def test_everything_as_plain_text():
    made = [record([errors("1x", 64, 1, 10), failing(9)], "z2"), record([errors("1x", 64, 2, 10)], "copy_first_50")]
    made.append(record([errors("1x", 64, 3, 10)], "copy_first_50", changed={"lr": 1}))
    made.append(record([errors("1x", 64, 4, 10)], "copy_first_50", form="standard"))
    assert all_tables(summarize(made)).splitlines() == [
        "copy_first_50, quick form",
        "mixer: error rate     1x",
        "bmru               0.200",
        "",
        "Formal languages and groups, quick form",
        "mixer: failing length        z2",
        "bmru                          9",
        "Mamba variant, published  4,352",
        "Mamba variant, published: medians from Length-independent state tracking under a parallel scan (Liège, 2026).",
        "",
        "z2, quick form",
        "mixer: error rate     1x",
        "bmru               0.100",
        "",
        "copy_first_50, standard form",
        "mixer: error rate     1x",
        "bmru               0.400",
        "",
        "copy_first_50, quick form, changes",
        "mixer, recipe: error rate     1x",
        "bmru, standard             0.200",
        "bmru, lr=1                 0.300",
    ]


def test_counts_have_their_interval():
    made = [record([errors("sparse", 512, 1, 6, 2), errors("1x", 8, 1, 9)], "flip_flop", seed=0)]
    made += [record([errors("sparse", 512, 0, 4, 2), errors("1x", 8, 1, 9)], "flip_flop", seed=1)]
    made += [record([skipped("sparse", 512)], "flip_flop", "attention")]
    lines = counts_table(summarize(made)).markdown().splitlines()
    assert lines[0] == "| errors / asked | sparse |"
    assert lines[2:4] == ["| bmru | 1 / 10 [0.018 – 0.404] |", "| attention | - |"]
    assert counts_table(summarize([record([errors("1x", 8, 1, 9)])])) is None


def test_the_overview_has_the_last_test_of_each_task_and_its_best_across():
    made = []
    for seed in (0, 1):
        made += [
            record([errors("1x", 51, 0, 10), errors("100x", 5001, wrong, 10)], mixer=mixer, seed=seed)
            for mixer, wrong in (("bmru", 1), ("lru", 2 + seed))
        ]
    made.append(record([failing(None)], "z2", "lru"))
    assert overview_table(summarize(made)).markdown(legend=False).splitlines() == [
        "| task, test | bmru | lru |",
        "|---|---:|---:|",
        "| copy_first_50, 100x | **0.100** | 0.250 |",
        "| z2, failing length | - | > 32,768 |",
    ]


def test_changes_stand_below_the_standard_recipe_of_their_mixer():
    made = [
        record([errors("1x", 51, 5, 10)], mixer="bmru", changed={"lr": 0.001}),
        record([errors("1x", 51, 6, 10)], mixer="bmru", changed={"gated": False, "kind": "x"}),
        record([errors("1x", 51, 1, 10)], mixer="bmru"),
        record([errors("1x", 51, 2, 10)], mixer="lru"),
    ]
    assert change_table(summarize(made)).markdown().splitlines() == [
        "| mixer, recipe: error rate | 1x |",
        "|---|---:|",
        "| bmru, standard | 0.100 |",
        "| bmru, lr=0.001 | 0.500 |",
        "| bmru, gated=false, kind=x | 0.600 |",
    ]


def test_tests_of_different_kinds_say_theirs():
    table = task_table(summarize([record([errors("1x", 51, 5, 10), squares("2x", 99, 0.1), failing(5)])]))
    assert table.header == ["mixer", "1x, error rate", "2x, squared error", "failing length"]


def test_a_reason_brings_no_markdown():
    table = task_table(summarize([record([skipped("1x", 5, "a|b *c* <d>")])]))
    assert table.markdown().splitlines()[-1] == r"1. a\|b \*c\* &lt;d>"
