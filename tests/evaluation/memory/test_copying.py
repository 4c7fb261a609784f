"""Copying the first input: what is asked, and where."""

import pytest
import torch

from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.task import IGNORED


@pytest.mark.parametrize("kind", [CopyFirst, CopyFirstSymbol])
def test_first_input_is_asked_at_the_end(kind):
    batch = kind(50).batch(6, torch.Generator().manual_seed(0))
    assert batch.inputs.shape[:2] == batch.targets.shape == (6, 51)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        first = inputs[0][0] if kind is CopyFirst else inputs[0]
        assert targets[-1] == first
        assert all(target != target or target == IGNORED for target in targets[:-1])


@pytest.mark.parametrize("kind", [CopyFirst, CopyFirstSymbol])
def test_tests_are_1_10_and_100_times_as_long(kind):
    tests = kind(300).tests()
    assert [(test.name, test.length) for test in tests] == [("1x", 301), ("10x", 3001), ("100x", 30_001)]
    batch = tests[1].make(2, torch.Generator().manual_seed(0))
    assert batch.targets.shape == (2, 3001)


@pytest.mark.parametrize("kind", [CopyFirst, CopyFirstSymbol])
def test_seed_gives_the_batch(kind):
    one, same, other = (kind(50).batch(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_symbols_are_uniform():
    symbols = CopyFirstSymbol(100).batch(100, torch.Generator().manual_seed(0)).inputs
    counts = symbols.flatten().bincount(minlength=8) / symbols.numel()
    assert (counts - 1 / 8).abs().max() < 0.01
