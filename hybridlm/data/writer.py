"""Token shards in the making: written as the tokens come, and each noted once it is whole.

    WORK/train-00000.bin, .docs.npy, .bytes.npy     as in the finished folder
    WORK/progress/train-00000.json                  its entry of the manifest, and the document that comes next

A killed run goes on behind the last shard that was noted and whose checksums hold; a torn one is written again under
the same name. Memory: two integers for each document of a shard.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hybridlm.files import replace_file, sha256

PROGRESS = "progress"


class ShardWriter:
    """The documents of one split, in shards of at most `limit` tokens, or one document.

    shards: entries of the manifest, one for each finished shard; next_document: the first document that none of them
    holds.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, limit: int, sources: int):
        self.folder, self.split, self.dtype, self.limit, self.sources = folder, split, dtype, limit, sources
        self.shards: list[dict[str, Any]] = []
        self.next_document = 0
        self._file: BinaryIO | None = None
        self._resume()

    def _resume(self) -> None:
        (self.folder / PROGRESS).mkdir(exist_ok=True)
        while True:
            path = self._note(self._name())
            try:
                note = json.loads(path.read_text(encoding="utf-8"))
                whole = all(sha256(self.folder / file) == sha for file, sha in note["shard"]["sha256"].items())
            except (OSError, ValueError):
                return
            if not whole:
                return
            self.shards.append(note["shard"])
            self.next_document = note["next_document"]

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):05d}"

    def _note(self, name: str) -> Path:
        return self.folder / PROGRESS / f"{name}.json"

    def add(self, ids: np.ndarray, *, document: int, source: int, n_bytes: int) -> None:
        """Tokens of document number `document`, which stand for `n_bytes` bytes of text."""
        if self._file is not None and self._offsets[-1] + len(ids) > self.limit:
            self.flush()
        if self._file is None:
            self._open()
            assert self._file is not None
        data = ids.astype(self.dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._bytes.append(n_bytes)
        totals = self._totals[source]
        totals["documents"] += 1
        totals["tokens"] += len(ids)
        totals["bytes"] += n_bytes
        self._last = document

    def _open(self) -> None:
        self._file = (self.folder / f"{self._name()}.bin").open("wb")
        self._hash = hashlib.sha256()
        self._offsets, self._bytes = array("q", [0]), array("q")
        self._totals = [{"documents": 0, "tokens": 0, "bytes": 0} for _ in range(self.sources)]

    def flush(self) -> None:
        """Finishes the shard that is open, if one is."""
        if self._file is None:
            return
        name = self._name()
        self._file.close()
        self._file = None
        np.save(self.folder / f"{name}.docs.npy", np.frombuffer(self._offsets, dtype=np.int64))
        np.save(self.folder / f"{name}.bytes.npy", np.frombuffer(self._bytes, dtype=np.int64))
        arrays = [f"{name}.docs.npy", f"{name}.bytes.npy"]
        shard = {
            "name": name,
            "tokens": self._offsets[-1],
            "documents": len(self._bytes),
            "bytes": sum(self._bytes),
            "sources": self._totals,
            "sha256": {f"{name}.bin": self._hash.hexdigest()} | {file: sha256(self.folder / file) for file in arrays},
        }
        self.next_document = self._last + 1
        replace_file(self._note(name), json.dumps({"next_document": self.next_document, "shard": shard}))
        self.shards.append(shard)

    def close(self) -> None:
        """Lets go of a shard that is not finished."""
        if self._file is not None:
            self._file.close()
            self._file = None


def finished_shards(folder: Path) -> int:
    """How many shards are noted as finished in a work folder."""
    return len(list((folder / PROGRESS).glob("[!.]*.json")))
