"""All lengths of a model, and what happens at the first that it cannot read."""

from itertools import pairwise

import pytest
import torch

from hybridlm.evaluation.lengths import passes as under_test
from hybridlm.evaluation.lengths.passes import read_all, tokens_to_read
from hybridlm.evaluation.lengths.targets import plan
from hybridlm.evaluation.lengths.tokens import tokens_of

LENGTHS = [4, 16, 48]
ROUNDING = 1e-4
"""Nats: sums of up to some hundred, of logits in fp32 from products of other shapes, differ by 2e-5 here; a token too
many or too few is some nats."""


@pytest.fixture(scope="module")
def documents(tokenizer, long_text):
    return [tokens_of(tokenizer, text) for text in (long_text[:400], "short", long_text[400:600])]


@pytest.fixture(scope="module")
def targets(documents):
    found = plan([[tokens] for tokens in documents], LENGTHS[-1], ["a", "b", "c"])
    assert [each.document for each in found] == [0, 2]
    return found


def test_sums_over_pieces_are_those_by_hand(others, documents, targets, nats_by_hand):
    model = others["llama"]
    found = read_all(model, documents, targets, LENGTHS, call=7)
    assert found.in_pieces is True
    assert not found.reasons
    for length in (4, 48):
        expected = []
        for each in targets:
            tokens = documents[each.document]
            nats = nats_by_hand(model, tokens, each.span(tokens), length)
            places = [tokens.before(int(cut)) - each.span(tokens)[0] for cut in each.cuts]
            expected += [nats[a:b].sum() for a, b in pairwise(places)]
        torch.testing.assert_close(found.by_length[length].nats, torch.stack(expected), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("pattern", ["rglru bmru", "lru attention"])
def test_calls_and_batches_change_no_number(build, documents, targets, pattern):
    model = build(pattern)
    one = read_all(model, documents, targets, LENGTHS)
    assert one.in_pieces is None  # all windows fit into one call
    for how in ({"call": 11, "rows": 2}, {"call": 20, "rows": 5}):
        other = read_all(model, documents, targets, LENGTHS, **how)
        assert other.in_pieces is True
        for length in LENGTHS:
            torch.testing.assert_close(other.by_length[length].nats, one.by_length[length].nats, atol=ROUNDING, rtol=0)


def test_positions_come_from_windows_without_overlap(others, documents, targets):
    found = read_all(others["llama"], documents, targets, LENGTHS).by_length[48]
    tokens = documents[0]
    first, last = targets[0].span(tokens)
    windows = -(-(last - first) // 24)
    own = found.apart[: -(-windows // 2)]
    assert all(len(nats) == len(sizes) for nats, sizes in own)
    assert [len(nats) for nats, _ in own[:-1]] == [48] * (len(own) - 1)
    read = sum(int(sizes.sum()) for _, sizes in own)
    begin = first - 24
    assert read == tokens.n_bytes(begin, begin + sum(len(nats) for nats, _ in own)).sum()


def test_the_bytes_in_front_of_a_target(others, documents, targets):
    found = read_all(others["llama"], documents, targets, LENGTHS)
    ahead = []
    for each in targets:
        tokens = documents[each.document]
        first, last = each.span(tokens)
        for target in range(first, last):
            start = first + (target - first) // 8 * 8 - 8
            ahead.append(int(tokens.n_bytes(start, target).sum()))
    assert found.by_length[16].context_bytes == pytest.approx(sum(ahead) / len(ahead))


def test_progress_is_told_of_all_tokens(others, documents, targets):
    told = []
    read_all(others["llama"], documents, targets, LENGTHS, report=told.append)
    assert sum(told) == tokens_to_read(documents, targets, LENGTHS)


def test_a_model_whose_cache_forgets_is_read_in_one_call(others, documents, targets, monkeypatch):
    usual = read_all(others["llama"], documents, targets, LENGTHS, call=7)
    monkeypatch.setattr(under_test, "cache_name", lambda *_: None)
    found = read_all(others["llama"], documents, targets, LENGTHS, call=7)
    assert found.in_pieces is False
    for length in LENGTHS:
        one, pieces = found.by_length[length].nats, usual.by_length[length].nats
        torch.testing.assert_close(one, pieces, atol=2e-5, rtol=1e-6)  # sums of about 170 nats, in another order
    monkeypatch.setattr("hybridlm.evaluation.lengths.windows.LARGEST", 20 * others["llama"].config.vocab_size)
    found = read_all(others["llama"], documents, targets, LENGTHS, call=7)
    assert list(found.by_length) == [4, 16]
    assert "cannot be carried over several tokens at once" in found.reasons[48]


def test_lengths_beyond_the_positions_are_not_possible(others, documents):
    lengths = [16, 64, 65, 80]
    targets = plan([[tokens] for tokens in documents[:1]], 80, ["a"])
    found = read_all(others["gpt2"], documents, targets, lengths)
    assert list(found.by_length) == [16, 64]
    assert found.reasons == {
        65: "the model has an embedding for each of 64 positions and none beyond",
        80: "not tried, as 65 is not possible",
    }


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (IndexError("index out of range in self"), "index out of range in self"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..."), "out of memory on cpu"),
        (ValueError("Sequence length 48\n exceeds the positions."), "Sequence length 48 exceeds the positions"),
    ],
)
def test_a_length_that_fails_ends_the_lengths_and_not_the_command(others, documents, targets, monkeypatch, error, says):
    real = under_test.read_windows

    def failing(model, tokens, span, length, **how):
        if length == 16:
            raise error
        return real(model, tokens, span, length, **how)

    monkeypatch.setattr(under_test, "read_windows", failing)
    found = read_all(others["llama"], documents, targets, LENGTHS)
    assert list(found.by_length) == [4]
    assert found.reasons == {16: says, 48: "not tried, as 16 is not possible"}


def test_predictions_that_are_not_finite_are_no_numbers(build, documents, targets):
    model = build()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    found = read_all(model, documents, targets, LENGTHS)
    assert not found.by_length
    assert found.reasons[4] == "the predictions are not finite in float32"
