"""The order of the data as it was on the day when it was written down here: no release may change it for a run that
goes on. And how little memory it takes."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from synthetic import open_index, write_index

from hybridlm.data import Windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_index(tmp_path_factory.mktemp("index"), 900, sources=3)


def digest(windows: Windows, epochs: int) -> str:
    found = hashlib.sha256()
    for number in range(epochs):
        epoch = windows._epoch(number)
        for numbers in (epoch.documents, epoch.begins, epoch.windows):
            found.update(np.asarray(numbers).astype("<i8").tobytes())
        found.update(str(sorted(epoch.cut.items())).encode())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, "2e79489f6294448bffac22f4d3d899c78efd912974aa4b400f5a97cc158a746d"),
        ([0.5, 2.0, 1.25], "f8c64bd4885be714e94de5067b18803480d38bb7702446e80b7d791740b1cebd"),
    ],
)
def test_the_drawn_order_stays_what_it_was(folder, weights, expected):
    assert digest(Windows(open_index(folder, weights), 17, seed=3), 3) == expected


def test_the_natural_order_stays_what_it_was(folder):
    windows = Windows(open_index(folder), 17, shuffle=False)
    assert digest(windows, 1) == "15b7a698bfdb6c491fb4c4587eb661b381ccf0c8ca30e488c59f865122e4f416"


def test_what_is_held_for_a_document(tmp_path, request):
    """Of the index nothing, as it is mapped; of an epoch 4 bytes and 8, and 4 for each window."""
    count = 100_000
    write_index(tmp_path, count)
    request.addfinalizer(tracemalloc.stop)  # left on by a failure, it would slow down every test behind this one
    tracemalloc.start()
    shards = open_index(tmp_path)
    index = tracemalloc.get_traced_memory()[0]
    windows = Windows(shards, 128)
    windows.sample(0)
    epoch = tracemalloc.get_traced_memory()[0]
    windows.sample(windows.per_epoch)
    boundary = tracemalloc.get_traced_memory()[0]
    windows.sample(windows.per_epoch + windows.per_epoch // 2)
    behind, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    needed, some = 12 * count + 4 * windows.per_epoch, 100_000
    assert index < some
    assert needed < epoch < needed + some
    assert 2 * needed < boundary < 2 * needed + some
    assert behind < needed + some
    assert peak < 2 * needed + 32 * count


def test_an_index_of_several_shards(folder):
    """Lengths, bytes and places of documents, against the files themselves."""
    shards = open_index(folder)
    edges = [np.load(path) for path in sorted(folder.glob("*.docs.npy"))]
    n_bytes = np.concatenate([np.load(path) for path in sorted(folder.glob("*.bytes.npy"))])
    lengths = np.concatenate([np.diff(of_shard) for of_shard in edges])
    assert shards.lengths.dtype == np.int32
    assert np.array_equal(shards.lengths, lengths)
    assert [shards.length(i) for i in range(900)] == lengths.tolist()
    assert [len(shards.document(i)) for i in (0, 299, 300, 600, 899)] == lengths[[0, 299, 300, 600, 899]].tolist()
    assert [shards.document_bytes(i) for i in range(900)] == n_bytes.tolist()
    assert [shards.bytes_before(i) for i in range(901)] == [0, *np.cumsum(n_bytes)]
    assert (shards.n_documents, shards.n_tokens, shards.n_bytes) == (900, lengths.sum(), n_bytes.sum())
