"""Token windows whose order is a pure function of (seed, epoch, step), whatever the number of workers or ranks.

An epoch: documents in a drawn order, one after another; that stream is cut into windows of T tokens, and the windows
come in a drawn order. Every token is a target exactly once an epoch, or as often as its source's weight says
(`mixture`). A window starts at the reset state; position_ids restart at 0 there and at each document.

With lanes, for training that carries the state from batch to batch, an epoch's stream is cut into as many equal pieces
as a batch has rows, and row r of the epoch's batches, one after another, is lane r from its beginning to its end:

    stream     0 1 2 3 4 5 6 7 8 9 ...         windows; 3 lanes of 4 windows, the last ones filled up
    batch 0    0 4 8        batch 1    1 5 9        batch 2    2 6 10        batch 3    3 7 11

position_ids then go on over a window's edge: they are 0 where a document begins, where a lane does, and at windows that
are drawn to begin anew all the same (`restart`). A 0 says that the state is to be reset, any other number that it goes
on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybridlm.data.mixture import epoch_items, epoch_tokens, narrow, order
from hybridlm.data.shards import TokenShards
from hybridlm.data.tokenizer import start_and_end, text_bytes
from hybridlm.errors import UserError

IGNORED = -100  # the label that no loss counts


class _Epoch:
    """The order of one epoch: documents (D,), where each begins in the stream (D + 1,) int64, windows (W,), begun (W,):
    the window in which its row was reset, and cut: the first token of those documents that are not read from their
    start. About 12 bytes for each document, and 4 for each window (8 in lanes)."""

    def __init__(
        self, documents: Sequence[int] | np.ndarray, lengths: np.ndarray, windows: Sequence[int] | np.ndarray,
        begun: Sequence[int] | np.ndarray, cut: dict[int, int],
    ):  # fmt: skip
        self.documents, self.windows, self.begun, self.cut = documents, windows, begun, cut
        self.begins = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self.begins[1:])


class Windows(Dataset):
    """Windows of `length` tokens (T) over a split.

    shuffle=False: natural order, every document once, the same every epoch. text_only: start and end symbols are no
    targets, as bits per byte want it. per_epoch: windows in an epoch, the same for all epochs, since a source's share
    of one is round(weight x its tokens) tokens; the last one of the stream is filled up with a document of its own that
    has no target. lanes: rows of a batch, each of which goes on in the next one; then per_epoch is a multiple of it,
    and what is filled up may be several windows, fewer than one batch. None: windows in a drawn order.
    """

    def __init__(
        self, shards: TokenShards, length: int, seed: int = 0, shuffle: bool = True, text_only: bool = False,
        lanes: int | None = None, restart: float = 0.0,
    ):  # fmt: skip
        if length < 1:
            raise UserError(f"sequence_length={length}: must be at least 1.")
        if not shards.n_tokens:
            raise UserError(
                f"{shards.folder}: the {shards.split} split is empty. Prepare the data with a larger share for it."
            )
        if lanes is not None and (lanes < 1 or not shuffle):
            raise ValueError(f"lanes={lanes}, shuffle={shuffle}: lanes are for training; at least 1.")
        self.shards, self.length, self.seed, self.shuffle, self.text_only = shards, length, seed, shuffle, text_only
        self.lanes, self.restart = lanes, restart
        self.start, self.end = start_and_end(shards.tokenizer)
        self.epoch_tokens = shards.n_tokens
        if shuffle:
            self.epoch_tokens = epoch_tokens(shards.lengths, shards.source_edges, shards.weights)
        if not self.epoch_tokens:
            raise UserError(
                f"{shards.folder}: the weights {shards.weights} leave no token of the {shards.split} split. Give "
                "one of the sources a larger weight."
            )
        self.per_epoch = windows_per_epoch(self.epoch_tokens, length, lanes)
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
            self._epochs[number] = self._draw(number)
        return self._epochs[number]

    def _draw(self, number: int) -> _Epoch:
        shards = self.shards
        if not self.shuffle:
            natural = range(self.per_epoch)
            return _Epoch(range(shards.n_documents), shards.lengths, natural, natural, {})
        items = epoch_items(shards.lengths, shards.source_edges, shards.weights, self.seed, number)
        bits = np.random.Philox(key=[self.seed, number])
        drawn = order(len(items.documents), bits)
        windows, begun = self._windows(bits)
        cut = {int(np.flatnonzero(drawn == i)[0]): int(items.firsts[i]) for i in np.nonzero(items.firsts)[0]}
        return _Epoch(items.documents[drawn], items.lengths[drawn], windows, begun, cut)

    def _windows(self, bits: np.random.Philox) -> tuple[np.ndarray, np.ndarray]:
        """The place in the stream, in windows, of each window of an epoch, and of the one where its row was reset;
        (per_epoch,) each."""
        if self.lanes is None:
            drawn = narrow(order(self.per_epoch, bits), self.per_epoch)
            return drawn, drawn
        places = narrow(np.arange(self.per_epoch), self.per_epoch).reshape(self.lanes, -1)
        anew = (bits.random_raw(self.per_epoch) >> np.uint64(11)) * 2.0**-53 < self.restart
        begun = np.maximum.accumulate(np.where(anew.reshape(places.shape), places, places[:, :1]), axis=1)
        return places.T.ravel(), begun.T.ravel()

    def sample(self, i: int) -> dict[str, np.ndarray]:
        """Window i, counted through all epochs: input_ids, shift_labels, position_ids, each (T,) int64. A pure
        function of (seed, i)."""
        number, index = divmod(i, self.per_epoch)
        epoch = self._epoch(number)
        if len(self._epochs) > 1 and index > self.per_epoch // 8:
            self._epochs = {number: epoch}  # no batch reaches back over the boundary any more
        first = int(epoch.windows[index]) * self.length
        reset = int(epoch.begun[index]) * self.length
        filled = max(0, min(self.length, self.epoch_tokens - first))
        inputs = np.full(self.length, self.start, dtype=np.int64)
        labels = np.full(self.length, IGNORED, dtype=np.int64)
        restarts = np.full(self.length, -first, dtype=np.int64)  # where its document begins, seen from the window
        at, item = first, int(np.searchsorted(epoch.begins, first, side="right")) - 1
        while at < first + filled:
            begin, end = int(epoch.begins[item]), int(epoch.begins[item + 1])
            upto = min(first + filled, end)
            here = slice(at - first, upto - first)
            skipped = epoch.cut.get(item, 0) - begin
            document = int(epoch.documents[item])
            inputs[here], labels[here] = self._read(document, at + skipped, upto + skipped)
            restarts[here.start] = max(begin, reset) - first
            at, item = upto, item + 1
        if filled < self.length:
            restarts[filled] = filled
        return {
            "input_ids": inputs,
            "shift_labels": labels,
            "position_ids": np.arange(self.length) - np.maximum.accumulate(restarts),
        }

    def _read(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) of a document, and the target of each: the token behind it. Behind the last one comes
        a start symbol, which says that the text ends where there is no end symbol for that."""
        size = self.shards.length(document)
        tokens = self.shards.read(document, start, min(stop + 1, size)).astype(np.int64)
        inputs, labels = tokens[: stop - start], tokens[1:]
        if stop == size:
            labels = np.append(labels, IGNORED if self.text_only or self.start != self.end else self.start)
        if self.text_only and self.start != self.end and start <= size - 2 < stop:
            labels[size - 2 - start] = IGNORED  # the end symbol
        return inputs, labels

    def n_bytes(self, windows: int) -> int:
        """UTF-8 bytes of the text that the targets of the first `windows` windows stand for, in natural order."""
        if self.shuffle:
            raise ValueError("n_bytes is defined for shuffle=False only: shuffled windows do not follow the text.")
        begins = self._epoch(0).begins
        stop = min(windows * self.length + 1, int(begins[-1]))  # the last target is one token behind the window
        whole = int(np.searchsorted(begins, stop, side="right")) - 1
        total = self.shards.bytes_before(whole)
        if stop > begins[whole]:
            ids = self.shards.read(whole, 1, stop - int(begins[whole])).tolist()
            if self.start != self.end and stop == begins[whole + 1]:
                ids = ids[:-1]
            total += text_bytes(self.shards.tokenizer, ids)
        return total


def windows_per_epoch(tokens: int, length: int, lanes: int | None = None) -> int:
    """Windows of `length` that an epoch of so many tokens has; as many in each of `lanes`."""
    if lanes is None:
        return -(-tokens // length)
    return lanes * -(-tokens // (lanes * length))


def batches(
    windows: Windows,
    *,
    start_step: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Iterator[list[dict[str, Tensor]]]:
    """Endless optimizer steps from `start_step`, each the list of this rank's micro-batches, (micro_batch_size, T)
    int64 tensors; (micro_batch_size, T / parts) where a rank reads part number `part` of its samples.

    Step k holds the samples [k batch_size, (k + 1) batch_size) over all ranks, a contiguous share for each, which with
    lanes (as many as batch_size) are the same rows in every step. Raises UserError where batch_size is no multiple of
    world_size * micro_batch_size.
    """
    if windows.lanes not in (None, batch_size):
        raise ValueError(f"batch_size={batch_size}: windows of {windows.lanes} lanes make batches of as many rows.")
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
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),  # its own, so that the run's random numbers do not depend on the loader
    )
    with _signals_held():
        micro_batches = iter(loader)  # which starts the workers
    while True:
        yield [part_of(next(micro_batches), part, parts) for _ in range(share // micro_batch_size)]


_OF_A_JOB = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)}


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait inside, and in processes that start here until they say what is to become of them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_JOB)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to all processes of a job must not end the workers before the run has finished its step and saved. The
    SIGTERM by which the run itself ends them still does."""
    for number in _OF_A_JOB - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # nothing there tells who sent a signal
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    run = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_where_the_run_says_so() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    threading.Thread(target=end_where_the_run_says_so, daemon=True).start()


def validation_batches(
    windows: Windows,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    part: int = 0,
    parts: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """The first `limit` windows (None: all) once, in order, dealt to the ranks batch by batch, the last one short.

    Every rank gets as many batches, since they may compute together: one that has run out gets a window whose targets
    do not count.
    """
    count = windows.per_epoch if limit is None else min(limit, windows.per_epoch)
    for begin in range(0, count, world_size * batch_size):
        at = begin + rank * batch_size
        batch = collate([windows.sample(i) for i in range(at, min(at + batch_size, count))] or [windows.sample(0)])
        if at >= count:
            batch["shift_labels"].fill_(IGNORED)
        yield part_of(batch, part, parts)


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Samples of (T,) to one batch of (B, T)."""
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def part_of(batch: dict[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    """Part number `part` of `parts` equal ones along T, (B, T / parts)."""
    if parts == 1:
        return batch
    return {name: tensor.chunk(parts, dim=1)[part] for name, tensor in batch.items()}
