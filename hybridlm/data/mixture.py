"""What one epoch reads of several sources with weights.

Each source is an endless sequence of passes over its documents, every pass in an order of its own. An epoch takes
round(weight x its tokens) tokens of it, and goes on where the epoch before stopped: with weight 2 each document comes
twice an epoch, with weight 0.5 an epoch reads one half of the tokens and the next one the other half. A document at
such a boundary is cut there; its rest comes in the next epoch. So every epoch has the same number of tokens, over time
every token of a source comes equally often, and what an epoch reads is a pure function of (seed, epoch).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Items(NamedTuple):
    """Documents, or pieces of them, that an epoch reads; (items,) each, in no particular order, int32 or int64."""

    documents: np.ndarray
    firsts: np.ndarray
    """The first token of each document that is read; 0 but for the rest of a cut one."""
    lengths: np.ndarray
    """Tokens that are read."""


def order(count: int, bits: np.random.Philox) -> np.ndarray:
    """A permutation drawn from raw bits, which numpy keeps the same in every version (its `permutation` is not
    promised)."""
    return np.argsort(bits.random_raw(count), kind="stable")


def narrow(numbers: np.ndarray, below: int) -> np.ndarray:
    """Whole numbers from 0 up to `below`, in 32 bits where they fit."""
    return numbers.astype(np.int32 if below <= 2**31 else np.int64, copy=False)


def epoch_tokens(lengths: np.ndarray, edges: np.ndarray, weights: list[float]) -> int:
    """Tokens of an epoch. lengths: tokens of each document; edges (sources + 1,): where each source's documents begin;
    weights (sources,)."""
    return sum(
        _share(lengths[begin:end], weight) for begin, end, weight in zip(edges[:-1], edges[1:], weights, strict=True)
    )


def epoch_items(lengths: np.ndarray, edges: np.ndarray, weights: list[float], seed: int, epoch: int) -> Items:
    """What an epoch reads, source by source."""
    parts = []
    for source, weight in enumerate(weights):
        begin, end = int(edges[source]), int(edges[source + 1])
        share = _share(lengths[begin:end], weight)
        if share:
            parts += _stretch(lengths[begin:end], begin, epoch * share, (epoch + 1) * share, (seed, source))
    if len(parts) == 1:
        return parts[0]
    return Items(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _share(lengths: np.ndarray, weight: float) -> int:
    return round(weight * int(lengths.sum()))


def _stretch(lengths: np.ndarray, first_document: int, start: int, stop: int, key: tuple[int, int]) -> list[Items]:
    """Tokens [start, stop) of a source's endless sequence."""
    total = int(lengths.sum())
    found = []
    for number in range(start // total, (stop - 1) // total + 1):
        a, b = max(start - number * total, 0), min(stop - number * total, total)
        whole = a == 0 and b == total
        items = _whole(lengths) if whole else _piece(lengths, a, b, _pass_bits(key, number))
        documents = narrow(items.documents, first_document + len(lengths))
        documents += first_document
        found.append(items._replace(documents=documents))
    return found


def _whole(lengths: np.ndarray) -> Items:
    count = len(lengths)
    firsts = np.broadcast_to(np.int64(0), count)  # takes no room
    return Items(narrow(np.arange(count), count), firsts, lengths)


def _piece(lengths: np.ndarray, a: int, b: int, bits: np.random.Philox) -> Items:
    """Tokens [a, b) of a pass."""
    documents = order(len(lengths), bits)
    ends = np.cumsum(lengths[documents])
    first, last = int(np.searchsorted(ends, a, side="right")), int(np.searchsorted(ends, b, side="left"))
    documents, ends = documents[first : last + 1], ends[first : last + 1]
    begins = ends - lengths[documents]
    starts, stops = np.maximum(begins, a), np.minimum(ends, b)
    return Items(documents, starts - begins, stops - starts)


def _pass_bits(key: tuple[int, int], number: int) -> np.random.Philox:
    seed, source = key
    return np.random.Philox(key=[seed + ((source + 1) << 32), number])
