"""Denoising: the targets are the flagged values in order, at the queries and nowhere else."""

import math

import pytest
import torch

from hybridlm.evaluation.memory.registry import TASKS

NAMES = ("denoising", "denoising_late")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def walk(batch):
    """Answers every row by reading it from left to right; per row the steps that were flagged."""
    flagged = []
    for steps, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        remembered, where, asked = [], [], 0
        for t, ((value, flag), target) in enumerate(zip(steps, targets, strict=True)):
            if flag == 0.0:
                assert target == remembered[asked]
                assert value not in remembered, "the answer stands where it is asked"
                asked += 1
                continue
            assert math.isnan(target)
            assert flag in (1.0, -1.0)
            assert asked == 0, "the queries come last"
            if flag == 1.0:
                remembered.append(value)
                where.append(t)
        assert len(remembered) == asked == 5
        flagged.append(where)
    return flagged


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_training_and_tests_ask_for_the_flagged_values(name, quick):
    task = TASKS[name](quick)
    steps = 100 if quick else 400
    batch = task.batch(8, seeded())
    assert batch.inputs.shape == (8, steps + 5, task.inputs)
    assert batch.inputs.dtype == batch.targets.dtype == torch.float32
    walk(batch)
    for test, factor in zip(task.tests(), (1, 10, 100), strict=True):
        assert (test.name, test.length) == (f"{factor}x", factor * steps + 5)
        batch = test.make(3, seeded())
        assert batch.inputs.shape == (3, test.length, 2)
        late = [t for where in walk(batch) for t in where if t >= factor * steps // 2]
        assert name == "denoising" or not late


@pytest.mark.parametrize(("name", "end"), [("denoising", 100), ("denoising_late", 50)])
def test_flags_fall_anywhere_alike(name, end):
    counts = torch.zeros(100)
    for where in walk(TASKS[name](True).batch(1500, seeded())):
        counts[where] += 1
    expected = 1500 * 5 / end
    assert (counts[:end] - expected).abs().max() < 5 * expected**0.5
    assert counts[end:].sum() == 0


@pytest.mark.parametrize("name", NAMES)
def test_answering_zero_gives_one(name):
    batch = TASKS[name](True).batch(4000, seeded())
    asked = ~batch.targets.isnan()
    assert batch.targets[asked].square().mean() == pytest.approx(1.0, abs=0.05)


def test_queries_carry_noise_that_tells_nothing():
    batch = TASKS["denoising"](True).batch(4000, seeded())
    noise, answers = batch.inputs[:, -5:, 0], batch.targets[:, -5:]
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    assert abs((noise[:, :, None] * answers[:, None, :]).mean(0)).max() < 5 / 4000**0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_batch(name):
    first, again, other = (TASKS[name](True).batch(4, seeded(seed)) for seed in (3, 3, 4))
    assert first.inputs.equal(again.inputs)
    assert first.targets.nan_to_num(9).equal(again.targets.nan_to_num(9))
    assert not first.inputs.equal(other.inputs)
