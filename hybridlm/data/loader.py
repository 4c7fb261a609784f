"""Token windows whose order is a pure function of (seed, epoch, step), whatever the number of workers or ranks.

An epoch: documents in a drawn order, one after another; that stream is cut into windows of T tokens, and the windows
come in a drawn order. Every token is a target exactly once an epoch. A window starts at the reset state; position_ids
restart at 0 there and at each document.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybridlm.data.shards import TokenShards
from hybridlm.data.tokenizer import start_and_end, text_bytes
from hybridlm.errors import UserError

IGNORED = -100  # the label that no loss counts


class _Epoch:
    """The order of one epoch: documents (D,), where each begins in the stream (D + 1,), windows (W,)."""

    def __init__(self, lengths: np.ndarray, windows: int, bits: np.random.Philox | None):
        self.documents = _order(len(lengths), bits)
        self.begins = np.concatenate([[0], np.cumsum(lengths[self.documents])])
        self.windows = _order(windows, bits)


def _order(count: int, bits: np.random.Philox | None) -> np.ndarray:
    """A permutation drawn from raw bits, which numpy keeps the same in every version (its `permutation` is not
    promised)."""
    return np.arange(count) if bits is None else np.argsort(bits.random_raw(count), kind="stable")


class Windows(Dataset):
    """Windows of `length` tokens (T) over a split.

    shuffle=False: natural order, the same every epoch. text_only: start and end symbols are no targets, as bits per
    byte want it. per_epoch: windows in an epoch; the last one of the stream is filled up with a document of its own
    that has no target.
    """

    def __init__(self, shards: TokenShards, length: int, seed: int = 0, shuffle: bool = True, text_only: bool = False):
        if length < 1:
            raise UserError(f"sequence_length={length}: must be at least 1.")
        if not shards.n_tokens:
            raise UserError(
                f"{shards.folder}: the {shards.split} split is empty. Prepare the data with a larger share for it."
            )
        self.shards, self.length, self.seed, self.shuffle, self.text_only = shards, length, seed, shuffle, text_only
        self.start, self.end = start_and_end(shards.tokenizer)
        self.per_epoch = -(-shards.n_tokens // length)
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.sample(i)

    def _epoch(self, number: int) -> _Epoch:
        if not self.shuffle:
            number = 0
        if number not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            bits = np.random.Philox(key=[self.seed, number]) if self.shuffle else None
            self._epochs[number] = _Epoch(self.shards.lengths, self.per_epoch, bits)
        return self._epochs[number]

    def sample(self, i: int) -> dict[str, np.ndarray]:
        """Window i, counted through all epochs: input_ids, shift_labels, position_ids, each (T,) int64. A pure
        function of (seed, i)."""
        number, index = divmod(i, self.per_epoch)
        epoch = self._epoch(number)
        first = int(epoch.windows[index]) * self.length
        filled = min(self.length, self.shards.n_tokens - first)
        tokens, begins = self._read(epoch, first, first + filled + 1)

        inputs = np.full(self.length, self.start, dtype=np.int64)
        labels = np.full(self.length, IGNORED, dtype=np.int64)
        inputs[:filled] = tokens[:filled]
        labels[:filled] = tokens[1:]
        before_start = begins[1:]
        if self.text_only or self.start != self.end:
            labels[:filled][before_start] = IGNORED
        if (
            self.text_only and self.start != self.end
        ):  # a document's own end symbol stands right before the next one's start
            last = np.append(before_start[1:], self._document_ends(epoch, first + filled + 1))
            labels[:filled][last] = IGNORED
        positions = np.arange(self.length)
        restarts = np.zeros(self.length, dtype=np.int64)
        restarts[:filled] = np.where(begins[:filled], positions[:filled], 0)
        if filled < self.length:
            restarts[filled] = filled
        return {
            "input_ids": inputs,
            "shift_labels": labels,
            "position_ids": positions - np.maximum.accumulate(restarts),
        }

    def _read(self, epoch: _Epoch, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [first, stop) of the stream, and where documents begin among them. Behind the stream stands one start
        symbol."""
        total = int(epoch.begins[-1])
        parts, begins = [], np.zeros(stop - first, dtype=bool)
        at, document = first, int(np.searchsorted(epoch.begins, first, side="right")) - 1
        while at < min(stop, total):
            begin, end = int(epoch.begins[document]), int(epoch.begins[document + 1])
            upto = min(stop, end)
            parts.append(self.shards.read(int(epoch.documents[document]), at - begin, upto - begin).astype(np.int64))
            if at == begin:
                begins[at - first] = True
            at, document = upto, document + 1
        if stop > total:
            parts.append(np.array([self.start]))
            begins[-1] = True
        return np.concatenate(parts), begins

    def _document_ends(self, epoch: _Epoch, position: int) -> bool:
        """Whether a document of the stream, or the stream, ends right before `position`."""
        at = int(np.searchsorted(epoch.begins, position))
        return position > epoch.begins[-1] or int(epoch.begins[min(at, len(epoch.begins) - 1)]) == position

    def n_bytes(self, windows: int) -> int:
        """UTF-8 bytes of the text that the targets of the first `windows` windows stand for, in natural order."""
        if self.shuffle:
            raise ValueError("n_bytes is defined for shuffle=False only: shuffled windows do not follow the text.")
        begins = self._epoch(0).begins
        stop = min(windows * self.length + 1, int(begins[-1]))  # the last target is one token behind the window
        whole = int(np.searchsorted(begins, stop, side="right")) - 1
        total = sum(self.shards.document_bytes(i) for i in range(whole))
        if stop > begins[whole]:
            ids = self.shards.read(whole, 1, stop - int(begins[whole])).tolist()
            if self.start != self.end and stop == begins[whole + 1]:
                ids = ids[:-1]
            total += text_bytes(self.shards.tokenizer, ids)
        return total


def batches(
    windows: Windows,
    *,
    start_step: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[list[dict[str, Tensor]]]:
    """Endless optimizer steps from `start_step`, each the list of this rank's micro-batches, (micro_batch_size, T)
    int64 tensors.

    Step k holds the samples [k batch_size, (k + 1) batch_size) over all ranks, a contiguous part for each. Raises
    UserError where batch_size is no multiple of world_size * micro_batch_size.
    """
    if batch_size % (world_size * micro_batch_size):
        raise UserError(
            f"batch_size={batch_size}: must be a multiple of micro_batch_size * processes = {micro_batch_size} * "
            f"{world_size}. "
            "Change batch_size or micro_batch_size."
        )
    share = batch_size // world_size

    def indices() -> Iterator[list[int]]:
        step = start_step
        while True:
            first = step * batch_size + rank * share
            for at in range(first, first + share, micro_batch_size):
                yield list(range(at, at + micro_batch_size))
            step += 1

    loader = DataLoader(
        windows,
        batch_sampler=indices(),  # pyright: ignore[reportArgumentType]
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator(),  # its own, so that the run's random numbers do not depend on the loader
    )
    micro_batches = iter(loader)
    while True:
        yield [next(micro_batches) for _ in range(share // micro_batch_size)]


def validation_batches(
    windows: Windows, *, batch_size: int, rank: int = 0, world_size: int = 1, limit: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """The first `limit` windows (None: all) once, in order, dealt to the ranks batch by batch, the last one short."""
    count = windows.per_epoch if limit is None else min(limit, windows.per_epoch)
    for at in range(rank * batch_size, count, world_size * batch_size):
        yield collate([windows.sample(i) for i in range(at, min(at + batch_size, count))])


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Samples of (T,) to one batch of (B, T)."""
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
