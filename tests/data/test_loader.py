"""Windows: every token a target once an epoch, boundaries right, and an order that nothing but (seed, step) decides."""

import multiprocessing
import subprocess
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_shards import Tokens

from hybridlm.data import PrepareConfig, TokenShards, Windows, batches, prepare, validation_batches
from hybridlm.errors import UserError

documents = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    documents=documents,
    length=st.integers(1, 20),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 2),
    end=st.sampled_from([0, 1]),
)
def test_every_token_is_a_target_once_an_epoch(documents, length, seed, epoch, end):
    shards = Tokens(documents, end)
    windows = Windows(shards, length, seed=seed)
    found = Counter()
    for i in range(windows.per_epoch):
        labels = windows.sample(epoch * windows.per_epoch + i)["shift_labels"]
        found.update(labels[labels != -100].tolist())
    # Every document is predicted from its start symbol on, and its end symbol (its own, or the next one's start) too.
    wanted = Counter(token for ids in documents for token in [*ids, end])
    assert found == wanted


@settings(max_examples=60, deadline=None)
@given(documents=documents, length=st.integers(1, 20), seed=st.integers(0, 5), end=st.sampled_from([0, 1]))
def test_windows_know_their_documents(documents, length, seed, end):
    """Inputs followed document by document, with positions that say where each begins, and labels that stay inside."""
    windows = Windows(Tokens(documents, end), length, seed=seed)
    whole = {(0, *ids, end) for ids in map(tuple, documents)}
    for i in range(windows.per_epoch):
        sample = windows.sample(i)
        inputs, labels, positions = sample["input_ids"], sample["shift_labels"], sample["position_ids"]
        assert positions[0] == 0
        assert all(p == 0 or p == q + 1 for q, p in pairwise(positions))
        for start in np.flatnonzero(positions == 0):
            stop = next((t for t in range(start + 1, length) if positions[t] == 0), length)
            targets = labels[start:stop]
            kept = targets != -100
            piece = [inputs[start], *targets[kept]]
            assert not kept.any() or any(is_inside(piece, document) for document in whole)


def is_inside(piece, document):
    return any(tuple(piece) == document[i : i + len(piece)] for i in range(len(document)))


@pytest.mark.parametrize("end", [0, 1])
def test_text_only_leaves_out_start_and_end_symbols(end):
    shards = Tokens([[2, 3], [4], [5, 6, 7]], end)
    for length in (1, 2, 3, 4, 50):
        windows = Windows(shards, length, shuffle=False, text_only=True)
        labels = np.concatenate([windows.sample(i)["shift_labels"] for i in range(windows.per_epoch)])
        assert labels[labels != -100].tolist() == [2, 3, 4, 5, 6, 7]


def test_epochs_differ_and_repeat():
    windows = Windows(Tokens([[i % 8 + 2] * 5 for i in range(40)]), 7, seed=1)
    rows = [tuple(windows.sample(i)["input_ids"]) for i in range(2 * windows.per_epoch)]
    first, second = rows[: windows.per_epoch], rows[windows.per_epoch :]
    assert first != second
    again = Windows(Tokens([[i % 8 + 2] * 5 for i in range(40)]), 7, seed=1)
    assert [tuple(again.sample(i)["input_ids"]) for i in reversed(range(2 * windows.per_epoch))] == rows[::-1]
    other = Windows(Tokens([[i % 8 + 2] * 5 for i in range(40)]), 7, seed=2)
    assert [tuple(other.sample(i)["input_ids"]) for i in range(windows.per_epoch)] != first


def take(windows, **options):
    return [torch.cat([micro["input_ids"] for micro in step]) for step in islice(batches(windows, **options), 5)]


def test_the_order_does_not_depend_on_workers_ranks_or_where_it_starts():
    windows = Windows(Tokens([[i % 8 + 2] * 9 for i in range(30)]), 5, seed=3)
    whole = take(windows, start_step=0, batch_size=4, micro_batch_size=4)
    ranks = [take(windows, start_step=0, batch_size=4, micro_batch_size=1, rank=r, world_size=2) for r in range(2)]
    for step in range(5):
        assert torch.equal(torch.cat([ranks[0][step], ranks[1][step]]), whole[step])
    later = take(windows, start_step=2, batch_size=4, micro_batch_size=2)
    assert all(torch.equal(x, y) for x, y in zip(later[:3], whole[2:], strict=True))
    workers = take(windows, start_step=0, batch_size=4, micro_batch_size=2, num_workers=2)
    assert all(torch.equal(x, y) for x, y in zip(workers, whole, strict=True))


def test_the_loader_leaves_the_random_state_alone():
    windows = Windows(Tokens([[2, 3, 4]]), 2)
    before = torch.get_rng_state()
    next(batches(windows, start_step=0, batch_size=2, micro_batch_size=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_of_a_batch_make_it_up():
    windows = Windows(Tokens([[2, 3, 4, 5]] * 5), 6)
    options = {"start_step": 3, "batch_size": 4, "micro_batch_size": 2}
    whole = next(batches(windows, **options))
    parts = [next(batches(windows, **options, part=part, parts=3)) for part in range(3)]
    for index, batch in enumerate(whole):
        for name, tensor in batch.items():
            assert torch.equal(torch.cat([part[index][name] for part in parts], dim=1), tensor)
            assert parts[0][index][name].shape == (2, 2)


def test_validation_batches_hold_every_window_once():
    windows = Windows(Tokens([[2, 3, 4, 5]] * 5), 3, shuffle=False)
    for world in (1, 2, 3):
        ranks = [list(validation_batches(windows, batch_size=2, rank=rank, world_size=world)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1, "ranks that compute together need as many batches each"
        rows = [batch["input_ids"] for batches in ranks for batch in batches if (batch["shift_labels"] >= 0).any()]
        found = Counter(tuple(row.tolist()) for batch in rows for row in batch)
        assert found == Counter(tuple(windows.sample(i)["input_ids"].tolist()) for i in range(windows.per_epoch))


def test_bytes_of_the_first_windows(tmp_path):
    text = "naïve café — the sea was calm; " * 30
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text(text[::-1], encoding="utf-8")
    folder = prepare(
        PrepareConfig(
            sources=[{"path": str(tmp_path / "*.txt")}],
            output=str(tmp_path / "out"),
            vocab_size=280,
            validation={"share": 0},
        ),
        log=lambda _: None,
    )
    shards = TokenShards(folder, "train")
    windows = Windows(shards, 16, shuffle=False, text_only=True)
    tokens = shards.tokenizer.convert_ids_to_tokens
    total = 0
    for k in range(1, windows.per_epoch + 1):
        labels = windows.sample(k - 1)["shift_labels"]
        total += sum(len(token) for token in tokens(labels[labels != -100].tolist()))
        assert windows.n_bytes(k) == total
    assert total == shards.n_bytes == 2 * len(text.encode())
    with pytest.raises(ValueError, match="shuffle=False"):
        Windows(shards, 16).n_bytes(1)


def test_bad_input():
    shards = Tokens([[2]])
    with pytest.raises(UserError, match="sequence_length=0"):
        Windows(shards, 0)
    with pytest.raises(UserError, match="split is empty"):
        Windows(Tokens([]), 4)
    with pytest.raises(UserError, match="batch_size=3"):
        next(batches(Windows(shards, 2), start_step=0, batch_size=3, micro_batch_size=1, world_size=2))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_workers_leave_signals_to_the_run(name):
    """A scheduler signals every process of a job; the step and the checkpoint that follow still need the workers."""
    windows = Windows(Tokens([[i % 8 + 2] * 5 for i in range(40)]), 8)
    before = set(multiprocessing.active_children())
    stream = batches(windows, start_step=0, batch_size=2, micro_batch_size=2, num_workers=2)
    next(stream)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    for worker in workers:  # by another process, as a scheduler does it
        subprocess.run(["kill", f"-{name.removeprefix('SIG')}", str(worker.pid)], check=True)
    for _ in range(10):
        next(stream)
    assert [worker.is_alive() for worker in workers] == [True, True]
    for worker in workers:
        worker.terminate()
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    stream.close()
