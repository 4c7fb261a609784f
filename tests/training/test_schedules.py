"""Learning rate and epsilon as functions of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.training.schedules import annealed, learning_rate, warmup_steps
from hybridlm.training.sections import EpsilonConfig, OptimizerConfig, ScheduleConfig

OPTIMIZER = OptimizerConfig(lr=2.0, min_lr_ratio=0.1)


def curve(schedule: ScheduleConfig, total: int) -> list[float]:
    return [learning_rate(step, total, OPTIMIZER, schedule) for step in range(total)]


def test_cosine_rises_to_the_peak_and_ends_at_the_minimum():
    rates = curve(ScheduleConfig(warmup_steps=4), 101)
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[-1] == pytest.approx(0.2, abs=1e-12)
    middle = 4 + (100 - 4) // 2
    assert rates[middle] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5), abs=1e-12)
    assert all(late <= early for early, late in pairwise(rates[4:]))


def test_wsd_is_flat_then_linear():
    rates = curve(ScheduleConfig(kind="wsd", warmup_steps=10, decay_share=0.2), 100)
    assert rates[10:81] == [2.0] * 71
    falls = [early - late for early, late in pairwise(rates[80:])]
    assert falls == pytest.approx([falls[0]] * 19)
    assert rates[-1] == pytest.approx(0.2, abs=1e-12)


def test_warmup_share():
    assert warmup_steps(ScheduleConfig(warmup_share=0.1), 50) == 5
    assert warmup_steps(ScheduleConfig(), 100) == 2
    assert warmup_steps(ScheduleConfig(warmup_steps=0), 100) == 0


@given(
    kind=st.sampled_from(["cosine", "wsd", "linear"]),
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    decay=st.floats(0, 1),
)
def test_rates_stay_in_their_range(kind, total, warmup, decay):
    rates = curve(ScheduleConfig(kind=kind, warmup_steps=warmup, decay_share=decay), total)
    assert all(0 < rate <= 2.0 and math.isfinite(rate) for rate in rates)


def test_epsilon_holds_falls_and_is_exactly_zero():
    config = EpsilonConfig(start=0.8, hold=0.1, zero=0.5)
    values = [annealed(step, 100, config) for step in range(100)]
    assert values[:10] == [0.8] * 10
    assert values[30] == pytest.approx(0.4)
    assert values[49] > 0
    assert values[50:] == [0.0] * 50
    assert all(late <= early for early, late in pairwise(values))


def test_epsilon_edges():
    assert annealed(0, 10, EpsilonConfig(start=1.0, hold=0.0, zero=0.0)) == 0.0
    assert [annealed(s, 4, EpsilonConfig(hold=0.5, zero=0.5)) for s in range(4)] == [1.0, 1.0, 0.0, 0.0]
    assert annealed(9, 10, EpsilonConfig(hold=1.0, zero=1.0)) == 1.0


def test_linear_is_a_straight_line_to_the_minimum():
    rates = curve(ScheduleConfig(kind="linear", warmup_steps=10), 101)
    assert rates[9:11] == [2.0, 2.0]
    falls = [early - late for early, late in pairwise(rates[10:])]
    assert falls == pytest.approx([1.8 / 90] * 90)
    assert rates[-1] == pytest.approx(0.2, abs=1e-12)


def test_epsilon_starts_at_one_unless_told():
    assert annealed(0, 10, EpsilonConfig()) == 1.0
    assert annealed(0, 10, EpsilonConfig(start=0.0)) == 0.0
