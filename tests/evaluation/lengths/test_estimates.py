"""Standard errors against many draws, and the sentence on losses that are made up."""

import math

import pytest
import torch

from hybridlm.evaluation.lengths.estimates import LEAST, bits_per_byte, course, in_words, standard_errors

LENGTHS = (512, 2048, 8192, 32_768)


def nats(bits, noise=0.002, pieces=32, n_bytes=1000.0, seed=0):
    """Per length, the nats of pieces: hard and easy ones, the same for all lengths, and a little noise of each."""
    draw = torch.Generator().manual_seed(seed)
    hard = 0.3 * torch.randn(pieces, generator=draw, dtype=torch.float64)
    found = [
        math.log(2) * n_bytes * (value + hard + noise * torch.randn(pieces, generator=draw, dtype=torch.float64))
        for value in bits
    ]
    return found, torch.full((pieces,), n_bytes)


def told(bits, **how):
    return course(LENGTHS[: len(bits)], *nats(bits, **how))


def test_a_ratio_of_sums_and_its_error():
    estimate = bits_per_byte(math.log(2) * torch.tensor([10.0, 30.0]), torch.tensor([10, 20]))
    assert estimate.bits == pytest.approx(40 / 30)
    assert estimate.error == pytest.approx(math.sqrt(2 * 2 * (10 / 3) ** 2) / 30)  # residuals -10/3 and 10/3
    assert bits_per_byte(torch.ones(9), torch.full((9,), 2)).error == pytest.approx(0, abs=1e-12)


def test_the_error_is_how_far_repetitions_lie_apart():
    values, errors = [], []
    for seed in range(400):
        (one,), sizes = nats([2.0], seed=seed)
        estimate = bits_per_byte(one, sizes)
        values.append(estimate.bits)
        errors.append(estimate.error)
    assert torch.tensor(values).std().item() == pytest.approx(sum(errors) / len(errors), rel=0.1)


def test_differences_are_sure_although_the_texts_differ_more():
    line = told([2.0, 1.9])
    found, sizes = nats([2.0, 1.9])
    assert bits_per_byte(found[0], sizes).error > 0.03
    assert line.gains[512, 2048].bits == pytest.approx(0.1, abs=0.002)
    assert line.gains[512, 2048].error < 0.001


def test_a_model_that_goes_on_improving():
    line = told([2.0, 1.9, 1.85, 1.82])
    assert (line.stops_at, line.worse_from, line.still_improves) == (32_768, None, True)
    words = in_words(line)
    assert words.startswith("Still improves at the longest context measured, 32,768 tokens (0.0")
    assert words.endswith("bits per byte better than 8,192).")


def test_a_model_that_stops_improving():
    line = told([2.0, 1.9, 1.9, 1.9])
    assert (line.stops_at, line.worse_from, line.still_improves) == (2048, None, False)
    assert in_words(line).startswith(
        "Stops improving at 2,048 tokens: no longer context is better by the 2.8 standard errors that make it "
        "sure (the nearest, "
    )


def test_a_model_that_gets_worse():
    line = told([2.0, 1.9, 1.9, 2.4])
    assert (line.stops_at, line.worse_from) == (2048, 32_768)
    assert "; gets worse from 32,768 tokens (0.49" in in_words(line)
    assert told([2.0, 1.9, 2.1, 2.4]).worse_from == 8192
    assert told([2.0, 2.1, 2.1, 2.1]).stops_at == 512


def test_a_dip_on_the_way_is_no_end():
    line = told([2.0, 1.9, 1.95, 1.8])
    assert (line.stops_at, line.worse_from) == (32_768, None)


def test_slow_gains_add_up():
    """No single step is sure, both together are: it stops at the second length, not at the first."""
    gain, spread = 0.001, 0.01 * torch.linspace(-1, 1, 32, dtype=torch.float64)
    bits = [torch.full_like(spread, 2.0), 2.0 - gain + spread, torch.full_like(spread, 2.0 - 2 * gain)]
    sizes = torch.full((32,), 1000.0)
    line = course(LENGTHS[:3], [math.log(2) * 1000 * each for each in bits], sizes)
    assert line.gains[512, 2048].error == line.gains[2048, 8192].error > gain
    assert line.gains[512, 8192].error < 1e-9
    assert line.stops_at == 2048


def test_what_is_flat_is_called_so_in_19_of_20_texts():
    wrong = [told([2.0, 2.0, 2.0, 2.0], seed=seed) for seed in range(300)]
    wrong = [line for line in wrong if line.stops_at != 512 or line.worse_from is not None]
    assert len(wrong) <= 0.05 * 300
    assert wrong  # no more is asked for than that


def test_more_comparisons_ask_for_more():
    assert standard_errors(2, 10_000) == pytest.approx(1.960, abs=1e-3)  # of the normal distribution
    assert standard_errors(2, 32) == pytest.approx(2.0395, abs=2e-3)  # Student's t, 31 degrees of freedom
    assert standard_errors(2, 8) == pytest.approx(2.365, abs=0.03)
    assert standard_errors(5, 32) == pytest.approx(3.02, abs=0.02)  # t at 1 - 0.05 / 20


def test_differences_of_rounding_are_none():
    first = torch.full((32,), 700.0)
    line = course((512, 2048), [first, first - 700 * LEAST / 3], torch.full((32,), 500.0))
    assert line.gains[512, 2048].error < 1e-9
    assert line.gains[512, 2048].bits > 0
    assert line.stops_at == 512


def test_one_length_says_nothing():
    line = told([2.0])
    assert line.still_improves is None
    assert in_words(line) == "Only 512 tokens could be measured, which says nothing about more context."
    nothing = course((), [], torch.ones(8))
    assert (nothing.stops_at, nothing.still_improves) == (None, None)
    assert in_words(nothing) == "None of the lengths could be measured."
