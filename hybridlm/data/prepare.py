"""From documents to a data folder: tokenizer, token shards with a document index, and a manifest.

    OUT/tokenizer/                    the tokenizer, as `save_pretrained` writes it
    OUT/train-00000.bin               tokens, uint16 or uint32, documents one after another
    OUT/train-00000.docs.npy          int64 (documents + 1): where each begins, and the end
    OUT/train-00000.bytes.npy         int64 (documents): UTF-8 bytes of each one's text
    OUT/validation-00000.*            the same
    OUT/manifest.json                 format, fingerprint, checksums

The sources are read three times (content hash, tokenizer, tokens), with one document and one shard in memory. The
folder is written aside and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from transformers import PreTrainedTokenizerBase

from hybridlm.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, TokenShards, read_manifest
from hybridlm.data.sources import Corpus, Source
from hybridlm.data.split import ValidationConfig, split_document
from hybridlm.data.tokenizer import (
    LARGEST_VOCABULARY,
    SMALLEST_VOCABULARY,
    document_ids,
    load_tokenizer,
    train_tokenizer,
)
from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.files import remove_dead_writes, write_folder


@dataclass(config=ConfigDict(extra="forbid", use_attribute_docstrings=True), kw_only=True)
class PrepareConfig:
    """How a data folder is made."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the documents come from, each {path: ...}, {dataset: ...} or {builtin: austen}."""
    output: str
    """The data folder to write."""
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY, le=LARGEST_VOCABULARY)] | None = None
    """Train a byte-level BPE tokenizer of this many tokens on the training split; 2048 where `tokenizer` is not
    given."""
    tokenizer: str | None = None
    """Take this tokenizer instead: a folder, or a name on the Hub."""
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    """What is held out."""
    seed: int = 0
    """Seed of the choice of validation documents."""
    shard_tokens: Annotated[int, Field(ge=1)] = 50_000_000
    """Tokens after which a new shard is begun; a document is never cut."""
    overwrite: bool = False
    """Replace a data folder that was made from something else."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> PrepareConfig:
        if self.vocab_size is not None and self.tokenizer is not None:
            raise ValueError("give only one of 'vocab_size' (train a tokenizer) and 'tokenizer' (take one)")
        if self.vocab_size is None and self.tokenizer is None:
            self.vocab_size = 2048
        return self


def prepare(config: PrepareConfig, log: Callable[[str], None] = print) -> Path:
    """Makes the data folder and returns its path; one that was made from the same things is kept. Raises UserError."""
    output = Path(config.output).expanduser()
    remove_dead_writes(output)
    corpus = Corpus(config.sources)
    given = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    made_of = _ingredients(config, corpus, given)
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    if _is_finished(output, fingerprint, made_of, config.overwrite):
        log(f"Data folder {output} is up to date (fingerprint {fingerprint[:12]}).")
        return output

    def fill(folder: Path) -> None:
        tokenizer = given or train_tokenizer(_training_texts(config, corpus), config.vocab_size or 0)
        tokenizer.save_pretrained(folder / "tokenizer")
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "made_of": made_of,
            "vocab_size": len(tokenizer),
            "dtype": str(_dtype(tokenizer)),
            "splits": _write_shards(config, corpus, tokenizer, folder),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    try:
        write_folder(output, fill)
    except OSError as error:
        raise UserError(
            f"output={str(output)!r}: it cannot be written ({error.strerror}). Choose a folder that can be. "
            "What was there before is there still."
        ) from error
    _report(output, corpus, log)
    return output


def _ingredients(config: PrepareConfig, corpus: Corpus, given: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """Everything that decides the folder's content; the fingerprint is its hash."""
    content, count = hashlib.sha256(), 0
    for text in corpus:
        data = text.encode()
        content.update(len(data).to_bytes(8, "big") + data)
        count += 1
    if count == 0:
        raise UserError(
            "sources: they hold no document, only empty text. Check the files, and what `documents` is set to."
        )
    return {
        "documents": count,
        "content": content.hexdigest(),
        "tokenizer": f"bpe-{config.vocab_size}" if given is None else _tokenizer_hash(given),
        "validation": {"by": config.validation.by, "share": config.validation.share},
        "seed": config.seed,
        "shard_tokens": config.shard_tokens,
        "format_version": FORMAT_VERSION,
    }


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_finished(output: Path, fingerprint: str, made_of: dict[str, Any], overwrite: bool) -> bool:
    """Whether `output` is what would be made. Raises UserError where it is something else that must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / MANIFEST).is_file():
        raise UserError(
            f"output={str(output)!r}: it exists and is no data folder. Choose another path; nothing was touched."
        )
    try:
        before = read_manifest(output)
        if before["fingerprint"] == fingerprint:
            for split in SPLITS:
                TokenShards(output, split)
            return True
    except UserError:
        if overwrite:  # damaged, and to be replaced
            return False
        raise
    if overwrite:
        return False
    differing = [key for key in made_of if before.get("made_of", {}).get(key) != made_of[key]]
    raise OtherSettingsError(
        f"output={str(output)!r}: this data folder was made from something else ({', '.join(differing)} differ). ",
        "Choose another output, or set overwrite: true to replace it.",
    )


def _training_texts(config: PrepareConfig, corpus: Corpus) -> Iterator[str]:
    for text in corpus:
        train, _ = split_document(text, config.validation, config.seed)
        if train:
            yield train


def _dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


class _Writer:
    """Collects the documents of one split and writes a shard whenever enough tokens came together."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int):
        self.folder, self.split, self.dtype, self.limit = folder, split, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self._documents: list[np.ndarray] = []
        self._bytes: list[int] = []
        self._tokens = 0

    def add(self, ids: list[int], n_bytes: int) -> None:
        if self._tokens and self._tokens + len(ids) > self.limit:
            self.flush()
        self._documents.append(np.asarray(ids, dtype=self.dtype))
        self._bytes.append(n_bytes)
        self._tokens += len(ids)

    def flush(self) -> None:
        if not self._documents:
            return
        name = f"{self.split}-{len(self.shards):05d}"
        np.concatenate(self._documents).tofile(self.folder / f"{name}.bin")
        offsets = np.cumsum([0, *(len(ids) for ids in self._documents)], dtype=np.int64)
        np.save(self.folder / f"{name}.docs.npy", offsets)
        np.save(self.folder / f"{name}.bytes.npy", np.asarray(self._bytes, dtype=np.int64))
        files = [f"{name}.bin", f"{name}.docs.npy", f"{name}.bytes.npy"]
        self.shards.append(
            {
                "name": name,
                "tokens": int(offsets[-1]),
                "documents": len(self._documents),
                "bytes": sum(self._bytes),
                "sha256": {file: _sha256(self.folder / file) for file in files},
            }
        )
        self._documents, self._bytes, self._tokens = [], [], 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_shards(
    config: PrepareConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    writers = {split: _Writer(folder, split, _dtype(tokenizer), config.shard_tokens) for split in SPLITS}
    for text in corpus:
        for split, part in zip(SPLITS, split_document(text, config.validation, config.seed), strict=True):
            if part:
                writers[split].add(document_ids(tokenizer, part), len(part.encode()))
    for split, writer in writers.items():
        writer.flush()
        if not writer.shards and (split == "train" or config.validation.share > 0):
            raise UserError(
                f"validation: the {split} split got no document with by={config.validation.by!r}, "
                f"share={config.validation.share}, seed={config.seed}. With few documents set validation.by: position, "
                "or share: 0 for no validation."
            )
    return {split: writer.shards for split, writer in writers.items()}


def _report(output: Path, corpus: Corpus, log: Callable[[str], None]) -> None:
    log(f"Data folder {output} written." + (f" Empty documents left out: {corpus.empty}." if corpus.empty else ""))
    for split in SPLITS:
        shards = TokenShards(output, split)
        if shards.n_documents:
            log(
                f"  {split}: {shards.n_documents:,} documents, {shards.n_tokens:,} tokens, {shards.n_bytes:,} bytes, "
                f"{shards.n_bytes / shards.n_tokens:.2f} bytes per token"
            )
