"""The first of two readings: every document is seen once, nothing is tokenised.

It finds what cannot be read before hours of tokenising, hashes the content (the data folder's fingerprint is a function
of it, not of names and dates of files), finds duplicates, and draws the text for the tokenizer. Of each document it
keeps 16 bytes, its hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from hybridlm.data.progress import PrepareProgress
from hybridlm.data.sample import Sample
from hybridlm.data.sources import Corpus
from hybridlm.data.split import ValidationConfig, split_document
from hybridlm.errors import UserError


class Content:
    """Hash of documents in their order, each with its length in front."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self._hash.update(len(data).to_bytes(8, "big"))
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@dataclass
class Scan:
    """What the first reading found. Documents are those that are not empty, duplicates among them."""

    content: str
    """Hash of all documents."""
    dropped: np.ndarray
    """(documents,) bool: which are left out as duplicates of an earlier one."""
    documents: list[int]
    """Documents of each source."""
    empty: list[int]
    """Empty documents of each source, left out."""
    duplicates: list[int]
    """Duplicates of each source, left out."""
    n_bytes: int = 0
    """UTF-8 bytes of all documents."""
    parts: list[int] = field(default_factory=lambda: [0, 0])
    """Documents that have a part in the training and in the validation split."""


def scan(
    corpus: Corpus,
    validation: ValidationConfig,
    seed: int,
    *,
    deduplicate: bool,
    sample: Sample | None,
    progress: PrepareProgress,
) -> Scan:
    """Reads the corpus once; the training text goes to `sample` too. Raises UserError for what cannot be read, and
    where there is no document."""
    content, digests = Content(), bytearray()
    found = Scan("", np.zeros(0, bool), [0] * len(corpus.sources), [], [])
    progress.phase("reading")
    for number, document in enumerate(corpus.documents()):
        content.add(document.data)
        digest = hashlib.blake2b(document.data, digest_size=16).digest()
        digests += digest
        train, held_out = split_document(document.text, validation, seed)
        found.parts[0] += bool(train)
        found.parts[1] += bool(held_out)
        if sample is not None and train:
            sample.add(number, digest, train)
        found.documents[document.source] += 1
        found.n_bytes += len(document.data)
        progress.advance(len(document.data))
    if not digests:
        raise UserError(
            "sources: they hold no document, only empty text. Check the files, and what `documents` is set to."
        )
    found.content, found.empty = content.hexdigest(), list(corpus.empty_by_source)
    found.dropped = _repeated(digests) if deduplicate else np.zeros(len(digests) // 16, bool)
    edges = np.cumsum([0, *found.documents])
    found.duplicates = [int(found.dropped[a:b].sum()) for a, b in pairwise(edges)]
    return found


def _repeated(digests: bytearray) -> np.ndarray:
    """(documents,) bool: whether an earlier document has the same 16 bytes. Sorted in 256 parts, by the first byte, so
    that the memory it takes is small beside the hashes themselves."""
    pairs = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    first = np.frombuffer(digests, dtype=np.uint8)[::16]
    repeated = np.zeros(len(pairs), bool)
    for byte in range(256):
        rows = np.flatnonzero(first == byte)
        some = pairs[rows]
        order = np.lexsort((some[:, 1], some[:, 0]))  # stable: of equal ones the earliest comes first
        some, rows = some[order], rows[order]
        repeated[rows[1:]] = (some[1:] == some[:-1]).all(axis=1)
    return repeated
