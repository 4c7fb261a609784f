"""A prepared data folder, opened: tokens and the index of their documents, memory-mapped, so that the processes of a
machine share them. What is held of an open folder does not grow with it."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.errors import UserError
from hybridlm.files import expanded
from hybridlm.safe_loading import is_inside

FORMAT_VERSION = 2
"""2: shards say how much of them comes from each source, and the manifest has the sources' weights."""
MANIFEST = "manifest.json"
_DTYPES = ("uint16", "uint32")
SPLITS = ("train", "validation")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data folder. Raises UserError where there is none, or it is not ours to read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"data folder {str(folder)!r}: there is no {MANIFEST} in it. Make the folder with `hybridlm prepare`."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version == FORMAT_VERSION:
            _check(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: it is damaged ({type(error).__name__}: {error}). Prepare the folder again with overwrite: true."
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {version}; this hybridlm reads {FORMAT_VERSION}. Prepare the folder again "
            "with overwrite: true."
        )
    return manifest


def manifest_text(manifest: dict[str, Any]) -> str:
    """A manifest as it stands in its file."""
    return json.dumps(manifest, indent=2) + "\n"


def _with_weights(fingerprint: str, weights: list[float]) -> str:
    """A run that goes on must have the same mixture: other weights are other data to it. The weights that a recipe
    gives belong to its run, so that several runs can read one folder, each with its own."""
    if all(weight == 1 for weight in weights):
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {json.dumps(weights)}".encode()).hexdigest()


def _check(manifest: dict[str, Any]) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError for a manifest that `prepare` cannot have written, such
    as one that names files outside of its folder."""
    _require(manifest, fingerprint=str, vocab_size=int, made_of=dict, sources=list, weights=list, dtype=str)
    _expect(manifest["dtype"] in _DTYPES, f"dtype {manifest['dtype']!r} is none of {', '.join(_DTYPES)}")
    _expect(all(_is_number(weight) and 0 <= weight < math.inf for weight in manifest["weights"]), "odd weights")
    for split in SPLITS:
        for shard in manifest["splits"][split]:
            _require(shard, name=str, tokens=int, documents=int, bytes=int, sources=list, sha256=dict)
            _expect(is_inside(shard["name"]), f"{shard['name']!r} is no file of the folder")
            files = {f"{shard['name']}.{kind}" for kind in ("bin", "docs.npy", "bytes.npy")}
            _expect(set(shard["sha256"]) == files, f"the checksums are not those of {', '.join(sorted(files))}")
            found = len(shard["sources"])
            _expect(found == len(manifest["weights"]), f"{shard['name']} has {found} sources")
            for counts in (shard, *shard["sources"]):
                _require(counts, tokens=int, documents=int, bytes=int)
                _expect(min(counts["tokens"], counts["documents"], counts["bytes"]) >= 0, "a count is negative")


def _require(entry: dict[str, Any], **kinds: type) -> None:
    missing = [key for key in kinds if key not in entry]
    if missing:
        raise KeyError(", ".join(missing))
    for key, kind in kinds.items():
        _expect(type(entry[key]) is kind, f"{key} is {entry[key]!r:.80}, no {kind.__name__}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class TokenShards:
    """One split of a data folder; documents numbered through all shards.

    Attributes: n_tokens (start and end symbols included), n_documents, n_bytes (UTF-8 bytes of the text), vocab_size,
    fingerprint (of the content, and of the weights where they are not all 1), weights: one for each source, as given or
    else the manifest's, source_edges (sources + 1,) int64: where each source's documents begin. Raises UserError for a
    folder that is missing or damaged.
    """

    def __init__(self, folder: str | Path, split: str, weights: list[float] | None = None):
        if split not in SPLITS:
            raise UserError(f"split={split!r}: must be one of {', '.join(SPLITS)}.")
        self.folder, self.split = expanded(folder), split
        if not self.folder.is_dir():
            raise UserError(f"data folder {str(folder)!r}: there is no such folder. Make it with `hybridlm prepare`.")
        manifest = read_manifest(self.folder)
        self.vocab_size: int = manifest["vocab_size"]
        self.weights = [float(weight) for weight in (manifest["weights"] if weights is None else weights)]
        if len(self.weights) != len(manifest["weights"]):
            raise UserError(
                f"data folder {str(folder)!r}: it has {len(manifest['weights'])} sources, but {len(self.weights)} "
                "weights are given. Give one for each, or prepare the folder again with overwrite: true."
            )
        self.fingerprint = _with_weights(manifest["fingerprint"], self.weights)
        self._shards: list[dict[str, Any]] = manifest["splits"][split]
        dtype = np.dtype(manifest["dtype"])
        self._tokens = [self._map(shard, dtype) for shard in self._shards]
        self._offsets = [self._index(shard, "docs", shard["documents"] + 1) for shard in self._shards]
        self._bytes = [self._index(shard, "bytes", shard["documents"]) for shard in self._shards]
        self._first = np.cumsum([0, *(shard["documents"] for shard in self._shards)], dtype=np.int64)
        counts = [sum(shard["sources"][i]["documents"] for shard in self._shards) for i in range(len(self.weights))]
        self.source_edges = np.cumsum([0, *counts], dtype=np.int64)
        self.n_documents = int(self._first[-1])
        self.n_tokens: int = sum(shard["tokens"] for shard in self._shards)
        self.n_bytes: int = sum(shard["bytes"] for shard in self._shards)

    def _map(self, shard: dict[str, Any], dtype: np.dtype) -> np.ndarray:
        path = self.folder / f"{shard['name']}.bin"
        found = path.stat().st_size if path.is_file() else None
        if found != shard["tokens"] * dtype.itemsize:
            raise UserError(
                f"{path}: {'it is missing' if found is None else f'it has {found} bytes'}; "
                f"{shard['tokens'] * dtype.itemsize} are expected. "
                "The shard is damaged: prepare the folder again with overwrite: true."
            )
        return np.memmap(path, dtype=dtype, mode="r")

    def _index(self, shard: dict[str, Any], kind: str, length: int) -> np.ndarray:
        path = self.folder / f"{shard['name']}.{kind}.npy"
        try:
            array = np.asarray(np.load(path, mmap_mode="r"))
        except Exception as error:  # a damaged header is parsed as Python, with all that may come of it
            raise UserError(
                f"{path}: it cannot be read ({error}). Prepare the folder again with overwrite: true."
            ) from None
        if array.dtype != np.int64 or array.shape != (length,) or (kind == "docs" and array[-1] != shard["tokens"]):
            raise UserError(f"{path}: it does not fit the manifest. Prepare the folder again with overwrite: true.")
        return array

    @property
    def tokenizer_path(self) -> Path:
        """The folder of the tokenizer that the tokens are of."""
        return self.folder / "tokenizer"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that the folder was made with. Raises UserError where it is missing or damaged."""
        path = self.tokenizer_path
        try:
            if not path.is_dir():  # looked at here: such a path may be a name on the Hub as well
                raise UserError("there is no such folder")
            tokenizer = load_tokenizer(path)
            if len(tokenizer) != self.vocab_size:
                raise UserError(f"it has {len(tokenizer)} tokens; {self.vocab_size} are expected")
        except UserError as error:
            reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".: ")
            raise UserError(
                f"{path}: the tokenizer of the data cannot be loaded ({reason}). The data folder is damaged: prepare "
                "the folder again with overwrite: true."
            ) from error
        return tokenizer

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, (n_documents,): int32 where that is enough, else int64. Made anew at each call.
        Raises UserError where one is negative."""
        wide = any(shard["tokens"] >= 2**31 for shard in self._shards)
        lengths = np.empty(self.n_documents, dtype=np.int64 if wide else np.int32)
        for first, edges in zip(self._first, self._offsets, strict=False):
            np.subtract(edges[1:], edges[:-1], out=lengths[first : first + len(edges) - 1])
        if self.n_documents and lengths.min() < 0:
            raise UserError(
                f"data folder {str(self.folder)!r}: the index of its documents is damaged, since one ends before it "
                "begins. Prepare the folder again with overwrite: true."
            )
        return lengths

    def _place(self, i: int) -> tuple[int, int]:
        """Document i's shard, and its number there."""
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return shard, i - int(self._first[shard])

    def length(self, i: int) -> int:
        """Tokens of document i."""
        shard, number = self._place(i)
        return int(self._offsets[shard][number + 1]) - int(self._offsets[shard][number])

    def read(self, i: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of document i, a view of the file."""
        shard, number = self._place(i)
        begin = int(self._offsets[shard][number])
        return self._tokens[shard][begin + start : begin + stop]

    def document(self, i: int) -> np.ndarray:
        """All tokens of document i, its start symbol first."""
        return self.read(i, 0, self.length(i))

    def document_bytes(self, i: int) -> int:
        """UTF-8 bytes of document i's text."""
        shard, number = self._place(i)
        return int(self._bytes[shard][number])

    def bytes_before(self, i: int) -> int:
        """UTF-8 bytes of the texts of all documents before number i."""
        counted = zip(self._first, self._bytes, strict=False)
        return sum(int(n_bytes[: max(0, i - int(first))].sum()) for first, n_bytes in counted)

    def verify(self) -> None:
        """Reads every file of the split and compares checksums. Raises UserError that names the damaged file."""
        for shard in self._shards:
            for name, expected in shard["sha256"].items():
                try:
                    with (self.folder / name).open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    raise UserError(
                        f"{self.folder / name}: it cannot be read ({error.strerror or error}). Prepare the folder "
                        "again with overwrite: true."
                    ) from None
                if found != expected:
                    raise UserError(
                        f"{self.folder / name}: its content does not fit its checksum; the shard is damaged. "
                        "Prepare the folder again with overwrite: true."
                    )
