"""Token shards without a folder, for tests of the loader."""

import numpy as np


class Tokens:
    """Shards in memory, with a tokenizer whose end symbol is `end`; sources: the source of each document, ascending."""

    def __init__(self, documents, end=0, weights=(1.0,), sources=None):
        start = 0
        tail = [] if end == start else [end]
        self.documents = [np.array([start, *ids, *tail]) for ids in documents]
        self.lengths = np.array([len(ids) for ids in self.documents])
        self.n_tokens, self.n_documents = int(self.lengths.sum()), len(documents)
        self.tokenizer = type("Tokenizer", (), {"bos_token_id": start, "eos_token_id": end})()
        self.folder, self.split = "memory", "train"
        self.weights = list(weights)
        self.source_edges = np.searchsorted(sources or [0] * len(documents), np.arange(len(weights) + 1))

    def length(self, i):
        return int(self.lengths[i])

    def read(self, i, start, stop):
        return self.documents[i][start:stop]
