"""The reference of the index scan, against Python's integers and dense algebra."""

import pytest
import torch
from index_scans import by_hand, dense_gradient, random_scan

from hybridlm.ops import reference


@pytest.mark.parametrize("flags", [False, True])
def test_the_states_are_those_of_a_loop(flags):
    drive, start, reset, mask = random_scan(40, flags=flags)
    found = reference.index_scan(drive, start.long(), reset=reset, mask=mask)
    assert torch.equal(found, by_hand(drive, start, reset, mask))


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_the_gradient_is_the_formula(length, flags):
    drive, start, reset, mask = random_scan(length, flags=flags)
    grad = torch.randn(*drive.shape[:-1], dtype=torch.float64)
    found = reference.index_scan_backward(grad, drive, start, reset=reset, mask=mask)
    assert torch.allclose(found, dense_gradient(drive, start, grad, reset, mask), atol=1e-12)
