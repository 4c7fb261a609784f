"""Rates and the remaining time, by a clock that the test turns."""

import math

import pytest

from hybridlm.training.pace import Pace

TOKENS, STEP = 100, 2.0
PAUSES = {"validation": 6, "samples": 4, "checkpoint": 9}
SECONDS = {"validation": 30.0, "samples": 5.0, "checkpoint": 11.0}


class Run:
    """A run whose steps take STEP seconds and whose pauses take SECONDS."""

    def __init__(self, start=0, total=60, first=STEP):
        self.time, self.number, self.total, self.first = 0.0, start, total, first
        self.pace = Pace(start, total, PAUSES, now=lambda: self.time)

    def step(self):
        seconds, self.first = self.first, STEP
        self.number += 1
        self.time += seconds
        self.pace.step(self.number, TOKENS, seconds)

    def pause(self):
        last = self.number == self.total
        self.time += sum(SECONDS[name] for name, every in PAUSES.items() if last or self.number % every == 0)


def ends(start, total, first=STEP):
    """When a run is over, and what it said would remain after each of its steps: step -> (time, seconds)."""
    run, said = Run(start, total, first), {}
    while run.number < total:
        run.step()
        said[run.number] = (run.time, run.pace.remaining())
        run.pause()
    return run.time, said


@pytest.mark.parametrize("start", [0, 35])
def test_the_remaining_time_is_right_once_each_pause_was_seen(start):
    """Also right before a pause, right behind one, and in a session that a checkpoint began."""
    end, said = ends(start, 200)
    # by then samples, validation and checkpoint were each due alone; what comes together is their sum
    sure = next(step for step in said if step > start + 17)
    for step in range(sure, 200):
        time, remaining = said[step]
        assert remaining == pytest.approx(end - time), step


def test_a_first_step_that_compiles_is_not_taken_for_all():
    end, said = ends(0, 200, first=90.0)
    assert said[1][1] is None
    assert said[2][1] == pytest.approx(STEP * 198)  # no pause was seen yet
    assert said[40][1] == pytest.approx(end - said[40][0])
    assert said[200][1] == 0.0


def test_both_rates():
    run = Run()
    for _ in range(6):
        run.step()
        run.pause()
    run.step()
    assert run.pace.step_rate == pytest.approx(TOKENS / STEP)
    assert run.pace.real_rate == pytest.approx(7 * TOKENS / (7 * STEP + 5 + 30))  # samples after 4, validation after 6


def test_the_real_rate_forgets():
    """After ten minutes at half the pace, the rate is half; before, it is between."""
    run = Run(total=100_000)
    for _ in range(100):
        run.step()
    assert run.pace.real_rate == pytest.approx(TOKENS / STEP)
    for _ in range(151):
        run.time += STEP
        run.step()
    assert run.pace.real_rate == pytest.approx(TOKENS / (2 * STEP))


@pytest.mark.parametrize(("done", "total"), [(1, 2), (1, 40), (17, 73), (36, 73), (72, 73)])
def test_pauses_to_come_are_counted_right(done, total):
    pace = Pace(done, total, PAUSES, now=lambda: 0.0)
    counted = {}
    for step in range(done, total):
        kinds = frozenset(name for name, every in PAUSES.items() if step % every == 0)
        counted[kinds] = counted.get(kinds, 0) + 1
    assert {kinds: count for kinds, count in pace._to_come().items() if count} == counted


def test_a_run_without_pauses():
    time = 0.0
    pace = Pace(0, 10, {"validation": 0}, now=lambda: time)
    for number in range(1, 4):
        time += 1.0
        pace.step(number, 10, 1.0)
    assert pace.remaining() == pytest.approx(7.0)
    assert math.isclose(pace.real_rate, pace.step_rate)
