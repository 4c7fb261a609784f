"""Flip-flop language modelling, against a loop that keeps the last bit written."""

import pytest
import torch

from hybridlm.evaluation.memory.flipflop import FlipFlop
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.task import IGNORED

WRITE, READ, IGNORE = 2, 3, 4


def drawn(ignoring, length=512, rows=100, seed=0):
    return FlipFlop().make(ignoring, length, rows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ignoring", [0.1, 0.8, 0.98])
def test_reads_ask_for_the_last_bit_written(ignoring):
    batch = drawn(ignoring)
    assert batch.inputs.shape == batch.targets.shape == (100, 512)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    for symbols, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert symbols[0] == WRITE
        assert symbols[-2] == READ
        kept = None
        for place in range(0, len(symbols), 2):
            instruction, bit = symbols[place : place + 2]
            assert instruction in (WRITE, READ, IGNORE)
            assert bit in (0, 1)
            if instruction == WRITE:
                kept = bit
            assert targets[place] == (kept if instruction == READ else IGNORED)
            assert targets[place + 1] == IGNORED
            if instruction == READ:
                assert bit == kept


@pytest.mark.parametrize("ignoring", [0.1, 0.8, 0.98])
def test_instructions_and_bits_have_their_probabilities(ignoring):
    batch = drawn(ignoring, rows=400)
    instructions, bits = batch.inputs[:, 2:-2:2], batch.inputs[:, 3:-2:2]
    for kind, probability in ((IGNORE, ignoring), (WRITE, (1 - ignoring) / 2), (READ, (1 - ignoring) / 2)):
        assert (instructions == kind).float().mean().item() == pytest.approx(probability, abs=0.008)
    for kind in (WRITE, IGNORE):
        assert bits[instructions == kind].float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert batch.inputs[:, 1].float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_answers_are_not_seen_when_asked():
    """The symbol before an answer is the instruction to read. Of the bits that a model has seen, only the last one
    written tells the answer: the last bit that was to be ignored agrees with it half of the time."""
    batch = drawn(0.98, length=2048, rows=200)
    asked = batch.targets != IGNORED
    assert (batch.inputs[asked] == READ).all()
    agree = []
    for symbols, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        agree += [
            symbols[place - 1] == target
            for place, target in enumerate(targets)
            if target != IGNORED and symbols[place - 2] == IGNORE
        ]
    assert len(agree) > 1000
    assert sum(agree) / len(agree) == pytest.approx(0.5, abs=0.05)


def test_a_seed_decides_a_batch():
    task = TASKS["flip_flop"](True)
    first, again, other = (task.batch(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.inputs.shape == (16, 512)
    assert first.inputs.equal(again.inputs)
    assert first.targets.equal(again.targets)
    assert not first.inputs.equal(other.inputs)
    trained = (first.inputs[:, 2:-2:2] == IGNORE).float().mean().item()
    assert trained == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("quick", "reads", "symbols"), [(True, 1_000, 300_000), (False, 10_000, 2_100_000)])
def test_tests_have_many_reads(quick, reads, symbols):
    """What a test is called is what it draws."""
    task = TASKS["flip_flop"](quick)
    assert (task.budget.steps, task.budget.rows) == ((300, 16) if quick else (2000, 16))
    found = {test.name: test for test in task.tests()}
    lengths = (512, 8192) if quick else (512, 8192, 131072)
    assert list(found) == ["1x", *(f"{kind} {length:,}" for kind in ("dense", "sparse") for length in lengths)]
    for name, test in found.items():
        batch = test.make(test.rows, torch.Generator().manual_seed(0))
        assert batch.inputs.shape == (test.rows, test.length)
        assert batch.inputs.numel() <= symbols
        assert (batch.targets != IGNORED).sum() >= reads
        kind, _, length = name.partition(" ")
        assert length in ("", f"{test.length:,}")
        ignoring = {"1x": 0.8, "sparse": 0.98, "dense": 0.1}[kind]
        found_share = (batch.inputs[:, 2:-2:2] == IGNORE).float().mean().item()
        assert found_share == pytest.approx(ignoring, abs=0.01)
