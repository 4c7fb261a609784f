"""The baseline that a language model must beat: an interpolated token bigram with the same tokenizer.

    p(w | h) = l1 c(h, w) / c(h) + l2 c(w) / n + l3 / V            l1 + l2 + l3 = 1

The weights l depend on how often the history h was seen (buckets by powers of two). They are fitted by expectation
maximisation on every tenth block of the *training* pairs, with counts from the other nine; the counts are then taken
from all of them (Jelinek and Mercer, 1980). Validation text is never looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridlm.data.shards import TokenShards
from hybridlm.data.tokenizer import start_and_end
from hybridlm.errors import UserError

BLOCK = 1000
"""Pairs in a block; every tenth block is held out to fit the weights."""
_MAX_ROUNDS = 200
_BUCKETS = 40

Ids = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass
class Counts:
    """Counts of pairs (history, word), sparse, over a vocabulary of V."""

    vocab_size: int
    keys: Ids
    """Sorted codes history * V + word of the pairs seen."""
    pairs: Ids
    """How often each was seen."""
    history: Ids
    """(V,) how often each history was seen."""
    word: Ids
    """(V,) how often each word was seen."""

    @classmethod
    def of(cls, history: Ids, word: Ids, vocab_size: int) -> Counts:
        keys, pairs = np.unique(history * vocab_size + word, return_counts=True)
        return cls(
            vocab_size, keys, pairs, np.bincount(history, minlength=vocab_size), np.bincount(word, minlength=vocab_size)
        )

    def parts(self, history: Ids, word: Ids) -> Weights:
        """(n, 3): the probabilities of bigram, unigram and uniform distribution for each pair."""
        key = history * self.vocab_size + word
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        seen = np.where(self.keys[at] == key, self.pairs[at], 0)
        bigram = seen / np.maximum(self.history[history], 1)
        unigram = self.word[word] / self.word.sum()
        return np.stack([bigram, unigram, np.full(len(word), 1 / self.vocab_size)], axis=1)

    def bucket(self, history: Ids) -> Ids:
        """0 for a history never seen, else 1 + floor(log2 of its count)."""
        count = self.history[history]
        return np.where(count > 0, 1 + np.floor(np.log2(np.maximum(count, 1))), 0).astype(np.int64)


@dataclass
class Bigram:
    """A fitted model: counts of all training pairs, and weights (buckets, 3)."""

    counts: Counts
    weights: Weights

    @classmethod
    def fit(cls, history: Ids, word: Ids, vocab_size: int) -> Bigram:
        """From pairs of token ids (n,) in the order of the text. Raises UserError for fewer than 20 pairs."""
        if len(word) < 20:
            raise UserError(
                f"training split: {len(word)} token pairs are too few to fit a bigram; at least 20 are needed. Use "
                "more text."
            )
        block = max(1, min(BLOCK, len(word) // 20))
        held_out = np.arange(len(word)) // block % 10 == 9
        most = Counts.of(history[~held_out], word[~held_out], vocab_size)
        weights = _fit_weights(most.parts(history[held_out], word[held_out]), most.bucket(history[held_out]))
        return cls(Counts.of(history, word, vocab_size), weights)

    def nats(self, history: Ids, word: Ids) -> Weights:
        """(n,) -ln p(word | history)."""
        weights = self.weights[self.counts.bucket(history)]
        return -np.log((weights * self.counts.parts(history, word)).sum(axis=1))


def bigram_baseline(train: TokenShards, validation: TokenShards) -> dict[str, Any]:
    """Bits per byte of the validation text under a bigram of the training split; memory grows with the training tokens.

    Returns bits_per_byte, perplexity_per_token, n_bytes and n_tokens of the validation split. Raises UserError for an
    empty split.
    """
    if not validation.n_bytes:
        raise UserError("validation split: it is empty. Prepare the data with a larger validation share.")
    start, end = start_and_end(train.tokenizer)
    model = Bigram.fit(*_training_pairs(train, start, end), vocab_size=train.vocab_size)
    nats, n_tokens = 0.0, 0
    for i in range(validation.n_documents):
        ids = np.asarray(validation.document(i), dtype=np.int64)
        if end != start:
            ids = ids[:-1]
        nats += float(model.nats(ids[:-1], ids[1:]).sum())
        n_tokens += len(ids) - 1
    return {
        "bits_per_byte": nats / (math.log(2) * validation.n_bytes),
        "perplexity_per_token": math.exp(nats / n_tokens),
        "n_bytes": validation.n_bytes,
        "n_tokens": n_tokens,
    }


def _training_pairs(train: TokenShards, start: int, end: int) -> tuple[Ids, Ids]:
    """All (history, word) of the training documents, the end symbol included as a word."""
    histories, words = [], []
    for i in range(train.n_documents):
        ids = np.asarray(train.document(i), dtype=np.int64)
        if end == start:  # the end symbol is the start of the next document
            ids = np.append(ids, start)
        histories.append(ids[:-1])
        words.append(ids[1:])
    return np.concatenate(histories), np.concatenate(words)


def _fit_weights(parts: Weights, bucket: Ids) -> Weights:
    """Expectation maximisation: (buckets, 3) weights that make the held-out pairs likeliest.

    parts (n, 3), bucket (n,).
    """
    prior = np.full((_BUCKETS, 3), 1 / 3)
    prior[0] = (0.0, 0.5, 0.5)  # a history never seen has no bigram
    weights = prior
    for _ in range(_MAX_ROUNDS):
        share = weights[bucket] * parts
        share /= share.sum(axis=1, keepdims=True)
        # One pair is added to each bucket, so that no weight falls to 0, nor a probability.
        sums = prior + np.stack([np.bincount(bucket, share[:, k], minlength=_BUCKETS) for k in range(3)], axis=1)
        better = sums / sums.sum(axis=1, keepdims=True)
        done = np.abs(better - weights).max() < 1e-6
        weights = better
        if done:
            break
    return weights
