"""Texts to tokens, in this process or in several; the results come in the order of the texts either way.

The reader stays one process and hands out batches, a few for each worker at a time, so that memory does not grow with
the corpus. Workers are forked from a server of their own rather than from the reader (a tokenizer has threads), which
imports the libraries once for all of them. They never see Ctrl-C, which is the reader's to handle, and end by
themselves when the reader is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from hybridlm.data.tokenizer import document_ids, load_tokenizer
from hybridlm.errors import UserError

_AHEAD = 3  # batches handed out for each worker


class Tokens(NamedTuple):
    """The tokens of some texts, one text after another."""

    ids: np.ndarray
    """Of all texts together, start and end symbols included."""
    lengths: np.ndarray
    """(texts,) int64."""


class _Batch(Protocol):
    @property
    def texts(self) -> list[str]: ...


B = TypeVar("B", bound=_Batch)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], dtype: np.dtype) -> Tokens:
    """Each text as a document of its own."""
    ids = [np.asarray(document_ids(tokenizer, text), dtype=dtype) for text in texts]
    return Tokens(np.concatenate(ids), np.array([len(some) for some in ids], dtype=np.int64))


def tokenized(batches: Iterable[B], folder: Path, dtype: np.dtype, workers: int) -> Generator[tuple[B, Tokens]]:
    """Each batch with its tokens, in order. folder: where the tokenizer lies; workers: 0 or 1 for this process. Raises
    UserError where a worker dies. Close the iterator: that ends the workers."""
    if workers <= 1:
        tokenizer = load_tokenizer(folder)
        for batch in batches:
            yield batch, tokenize(tokenizer, batch.texts, dtype)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(str(folder), dtype.str))
    pending: deque[tuple[B, Future[Tokens]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, _submit(pool, batch.texts)))
            if len(pending) > _AHEAD * workers:
                batch, future = pending.popleft()
                yield batch, future.result()
        while pending:
            batch, future = pending.popleft()
            yield batch, future.result()
    except BrokenProcessPool:
        raise UserError(
            f"workers={workers}: a worker process died; most likely the system killed it for want of memory. Set fewer "
            "workers, and give the command again."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, texts: list[str]) -> Future[Tokens]:
    """The server, or a worker, that is started here takes over the signal mask: Ctrl-C does not end it on its way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, texts)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_TOKENIZER: PreTrainedTokenizerBase
_DTYPE: np.dtype


def _begin(folder: str, dtype: str) -> None:
    """What a worker does first."""
    global _TOKENIZER, _DTYPE
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader = multiprocessing.parent_process()
    assert reader is not None, "only a worker begins"
    threading.Thread(target=_end_with, args=(reader.sentinel,), daemon=True).start()
    _TOKENIZER, _DTYPE = load_tokenizer(folder), np.dtype(dtype)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work(texts: list[str]) -> Tokens:
    return tokenize(_TOKENIZER, texts, _DTYPE)
