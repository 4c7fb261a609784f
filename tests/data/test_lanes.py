"""Lanes: every token a target once an epoch, each row of a batch goes on where it stopped, and the order is a pure
function of (seed, step)."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_shards import Tokens

from hybridlm.data import Windows, batches

documents = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=25), min_size=1, max_size=8)
cases = {
    "documents": documents,
    "length": st.integers(1, 12),
    "lanes": st.integers(1, 5),
    "seed": st.integers(0, 5),
    "epoch": st.integers(0, 2),
    "end": st.sampled_from([0, 1]),
}


@settings(max_examples=80, deadline=None)
@given(**cases)
def test_every_token_is_a_target_once_an_epoch(documents, length, lanes, seed, epoch, end):
    windows = Windows(Tokens(documents, end), length, seed=seed, lanes=lanes)
    found = Counter()
    for i in range(windows.per_epoch):
        labels = windows.sample(epoch * windows.per_epoch + i)["shift_labels"]
        found.update(labels[labels != -100].tolist())
    assert found == Counter(token for ids in documents for token in [*ids, end])
    assert windows.per_epoch % lanes == 0
    plain = Windows(Tokens(documents, end), length, seed=seed).per_epoch
    assert plain <= windows.per_epoch < plain + lanes  # whole batches, and none of filling alone


@settings(max_examples=80, deadline=None)
@given(**cases)
def test_a_row_goes_on_where_it_stopped(documents, length, lanes, seed, epoch, end):
    """Rows of an epoch's batches put together, and those behind one another: the stream, cut at the lanes' ends."""
    shards = Tokens(documents, end)
    windows = Windows(shards, length, seed=seed, lanes=lanes)
    first, count = epoch * windows.per_epoch, windows.per_epoch // lanes
    rows = [joined([windows.sample(first + k * lanes + row) for k in range(count)]) for row in range(lanes)]
    tokens = windows.epoch_tokens
    order = windows._epoch(epoch).documents
    stream = np.concatenate([shards.documents[i] for i in order])
    within = np.concatenate([np.arange(len(shards.documents[i])) for i in order])  # each token's place in its document
    inputs = np.concatenate([row["input_ids"] for row in rows])
    assert inputs[:tokens].tolist() == stream.tolist()
    positions = np.concatenate([row["position_ids"] for row in rows])
    in_lane = np.arange(len(inputs)) % (count * length)
    assert positions[:tokens].tolist() == np.minimum(within, in_lane[:tokens]).tolist()
    labels = np.concatenate([row["shift_labels"] for row in rows])
    assert (labels[tokens:] == -100).all()
    assert (positions[tokens:] >= 0).all()
    assert tokens == len(inputs) or positions[tokens] == 0  # what is filled up is a document of its own


def joined(samples):
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def test_the_rest_of_a_cut_document_is_one_of_its_own():
    """Weight 0.5: an epoch begins with what the one before left of a document, at position 0."""
    windows = Windows(Tokens([[i % 8 + 2 for i in range(19)]], weights=(0.5,)), 3, lanes=2)
    assert windows.per_epoch == 4
    batch = [windows.sample(4 + i) for i in range(4)]
    assert [sample["position_ids"].tolist() for sample in batch] == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 0, 1]]


def take(windows, count=7, **options):
    stream = batches(windows, batch_size=4, **options)
    return [{name: torch.cat([micro[name] for micro in step]) for name in step[0]} for step in islice(stream, count)]


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(x[name], y[name]) for x, y in zip(one, two, strict=True) for name in x
    )


def test_the_order_does_not_depend_on_workers_ranks_or_where_it_starts():
    windows = Windows(Tokens([[i % 8 + 2] * 9 for i in range(11)]), 5, seed=3, lanes=4)
    assert windows.per_epoch == 24
    whole = take(windows, start_step=0, micro_batch_size=4)  # into the second epoch
    ranks = [take(windows, start_step=0, micro_batch_size=1, rank=r, world_size=2) for r in range(2)]
    assert equal([{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*ranks, strict=True)], whole)
    assert equal(take(windows, 3, start_step=4, micro_batch_size=2), whole[4:])
    assert equal(take(windows, start_step=0, micro_batch_size=2, num_workers=2), whole)
    assert bool((whole[1]["position_ids"][:, 0] > 0).any())
    assert not whole[6]["position_ids"][:, 0].any()  # an epoch begins anew
    other = Windows(Tokens([[i % 8 + 2] * 9 for i in range(11)]), 5, seed=4, lanes=4)
    assert not equal(take(other, start_step=0, micro_batch_size=4), whole)


def test_some_windows_begin_anew():
    """As many as asked for, drawn anew in each epoch; positions count from there; what is read is the same."""
    shards = Tokens([[i % 8 + 2 for i in range(40 * size)] for size in (9, 30, 50)])
    plain, again = (Windows(shards, 5, seed=1, lanes=8, restart=share) for share in (0.0, 0.25))
    starts = []
    for epoch in range(2):
        rows = [
            [
                joined([windows.sample(epoch * windows.per_epoch + k * 8 + row) for k in range(plain.per_epoch // 8)])
                for row in range(8)
            ]
            for windows in (plain, again)
        ]
        for one, two in zip(*rows, strict=True):
            assert (one["input_ids"] == two["input_ids"]).all()
            assert (one["shift_labels"] == two["shift_labels"]).all()
            before, after = one["position_ids"], two["position_ids"]
            reset = (after == 0) & (before != 0)
            assert not reset[np.arange(len(reset)) % 5 != 0].any()
            since = np.arange(len(reset)) - np.maximum.accumulate(np.where(after == 0, np.arange(len(reset)), 0))
            assert (after == since).all()
        starts.append(np.stack([row["position_ids"][::5] == 0 for row in rows[1]]))
        extra = starts[-1] & ~np.stack([row["position_ids"][::5] == 0 for row in rows[0]])
        assert 0.2 < extra.mean() < 0.3
    assert (starts[0] != starts[1]).any()


def test_lanes_are_rows_of_a_batch():
    windows = Windows(Tokens([[2, 3, 4]] * 9), 2, lanes=3)
    with pytest.raises(ValueError, match="3 lanes"):
        next(batches(windows, start_step=0, batch_size=6, micro_batch_size=3))
    with pytest.raises(ValueError, match="lanes=2, shuffle=False"):
        Windows(Tokens([[2, 3, 4]]), 2, shuffle=False, lanes=2)
