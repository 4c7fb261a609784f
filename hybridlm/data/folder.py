"""The second reading: a data folder is written aside, shard by shard, and given its name when it is whole.

    .OUT.unfinished/made_of.json        what it is made of; one of something else is thrown away
    .OUT.unfinished/tokenizer/          written once
    .OUT.unfinished/train-00000.*       shards, and in progress/ a note for each that is finished
    .OUT.unfinished/manifest.json       last: with it the folder is whole, and only the rename is missing

Whoever is killed on the way leaves that folder, and the same command goes on from there, to the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hybridlm.data import report
from hybridlm.data.progress import PrepareProgress
from hybridlm.data.sample import Sample
from hybridlm.data.scan import Content, Scan
from hybridlm.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, TokenShards, manifest_text, read_manifest
from hybridlm.data.sources import Corpus
from hybridlm.data.split import ValidationConfig, split_document
from hybridlm.data.tokenizer import load_tokenizer, train_tokenizer
from hybridlm.data.workers import tokenized
from hybridlm.data.writer import PROGRESS, ShardWriter, finished_shards
from hybridlm.errors import UserError
from hybridlm.files import put_in_place, replace_file, write_folder

MADE_OF = "made_of.json"
_BATCH_BYTES, _BATCH_TEXTS = 2**18, 512


@dataclass
class Plan:
    """A folder to be made."""

    output: Path
    """Its final name."""
    made_of: dict[str, Any]
    """Everything that decides its content."""
    fingerprint: str
    """Hash of that."""
    found: Scan
    """What the first reading found."""
    weights: list[float]
    """Of the sources."""

    @property
    def work(self) -> Path:
        """Where the folder is while it is not whole."""
        return self.output.with_name(f".{self.output.name}.unfinished")


class SourcesChangedError(UserError):
    """The second reading found other documents than the first."""


def write_data_folder(
    plan: Plan,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase | Sample,
    progress: PrepareProgress,
    *,
    vocab_size: int,
    validation: ValidationConfig,
    seed: int,
    shard_tokens: int,
    workers: int,
) -> None:
    """Makes the folder, or goes on making it. tokenizer: one to take, or the text to train one of `vocab_size` on. What
    goes wrong leaves finished shards for the next time, and nothing where there are none."""
    work = plan.work
    try:
        whole = _open_work(plan, progress)
        if not whole:
            _tokenizer(work, tokenizer, plan.found, vocab_size, progress)
            dtype = _dtype(load_tokenizer(work / "tokenizer"))
            writers = [ShardWriter(work, split, dtype, shard_tokens, len(plan.weights)) for split in SPLITS]
            batches = _batches(corpus, plan.found, validation, seed, [w.next_document for w in writers], progress)
            _fill(writers, batches, work / "tokenizer", dtype, workers)
            _finish(plan, corpus, dtype, {writer.split: writer.shards for writer in writers})
        (work / MADE_OF).unlink(missing_ok=True)
        shutil.rmtree(work / PROGRESS, ignore_errors=True)
        put_in_place(work, plan.output)
    except BaseException as error:
        progress.pause()
        _after_failure(plan, error, progress)
        raise
    progress.pause()


def _after_failure(plan: Plan, error: BaseException, progress: PrepareProgress) -> None:
    if not plan.work.exists():
        return
    kept = finished_shards(plan.work)
    whole = (plan.work / MANIFEST).exists()
    if isinstance(error, SourcesChangedError) or not (kept or whole):
        shutil.rmtree(plan.work, ignore_errors=True)
    else:
        what = "all of it is" if whole else f"{kept} finished shard{'s are' if kept > 1 else ' is'}"
        progress.log(f"Not finished: {what} kept in {plan.work}, and the same command goes on from there.")


def _open_work(plan: Plan, progress: PrepareProgress) -> bool:
    """Makes the work folder, or takes up the one that was left; whether it is whole already."""
    work = plan.work
    if work.exists():
        if _made_for(work) == plan.fingerprint:
            for left in work.glob(".*"):  # torn by a kill; nobody else is at work here
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if not (work / MANIFEST).exists():
                if kept := finished_shards(work):
                    progress.log(f"Goes on from {work}: {kept} shard{'s' if kept > 1 else ''} finished before.")
                return False
            if _is_sound(work, plan.weights):
                return True
        else:
            progress.log(f"{work} was left by a run with other sources or settings; it is begun anew.")
        shutil.rmtree(work)
    work.mkdir()
    replace_file(work / MADE_OF, json.dumps({"fingerprint": plan.fingerprint}))
    return False


def _made_for(work: Path) -> str | None:
    for name in (MANIFEST, MADE_OF):
        try:
            return json.loads((work / name).read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_sound(work: Path, weights: list[float]) -> bool:
    """Whether a work folder with a manifest is whole; it then gets these weights."""
    try:
        for split in SPLITS:
            TokenShards(work, split).verify()
        _ = TokenShards(work, "train").tokenizer
    except (UserError, OSError):
        return False
    manifest = read_manifest(work) | {"weights": weights}
    replace_file(work / MANIFEST, manifest_text(manifest))
    return True


def _tokenizer(
    work: Path, tokenizer: PreTrainedTokenizerBase | Sample, found: Scan, vocab_size: int, progress: PrepareProgress
) -> None:
    """Puts the tokenizer into the work folder, where it is not there yet."""
    if (work / "tokenizer").exists():
        return
    if isinstance(tokenizer, Sample):
        if tokenizer.n_bytes > 10**7:
            progress.log(f"Training a tokenizer of {vocab_size} tokens on {tokenizer.n_bytes / 1e6:,.0f} MB of text.")
        tokenizer = train_tokenizer(tokenizer.texts(found.dropped), vocab_size)
    write_folder(work / "tokenizer", partial(_save, tokenizer))


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)


def _dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


class _Part(NamedTuple):
    """Of a document, what goes to one split."""

    split: int
    document: int
    source: int
    n_bytes: int


@dataclass
class _Batch:
    parts: list[_Part] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    n_bytes: int = 0

    def add(self, part: _Part, text: str) -> None:
        self.parts.append(part)
        self.texts.append(text)
        self.n_bytes += part.n_bytes

    @property
    def full(self) -> bool:
        return self.n_bytes >= _BATCH_BYTES or len(self.texts) >= _BATCH_TEXTS


def _batches(
    corpus: Corpus,
    found: Scan,
    validation: ValidationConfig,
    seed: int,
    begin: list[int],
    progress: PrepareProgress,
) -> Iterator[_Batch]:
    """What is to be tokenised: of each split the documents from number `begin[split]` on. Raises SourcesChangedError
    where the documents are not those of the first reading."""
    content, batch, number = Content(), _Batch(), -1
    progress.phase("tokenising", found.n_bytes)
    for number, document in enumerate(corpus.documents()):
        content.add(document.data)
        progress.advance(len(document.data))
        if number >= len(found.dropped):
            break
        if found.dropped[number]:
            continue
        for split, text in enumerate(split_document(document.text, validation, seed)):
            if text and number >= begin[split]:
                batch.add(_Part(split, number, document.source, len(text.encode())), text)
        if batch.full:
            yield batch
            batch = _Batch()
    if number + 1 != len(found.dropped) or content.hexdigest() != found.content:
        raise SourcesChangedError(
            "sources: they changed while they were read: the second reading found other documents than the first. "
            "Give the command again when nothing writes to them."
        )
    if batch.texts:
        yield batch


def _fill(
    writers: list[ShardWriter], batches: Iterator[_Batch], tokenizer: Path, dtype: np.dtype, workers: int
) -> None:
    try:
        with closing(tokenized(batches, tokenizer, dtype, workers)) as results:
            for batch, tokens in results:
                ends = np.cumsum(tokens.lengths)
                for part, end, length in zip(batch.parts, ends, tokens.lengths, strict=True):
                    ids = tokens.ids[end - length : end]
                    writers[part.split].add(ids, document=part.document, source=part.source, n_bytes=part.n_bytes)
        for writer in writers:
            writer.flush()
    finally:
        for writer in writers:
            writer.close()


def _finish(plan: Plan, corpus: Corpus, dtype: np.dtype, splits: dict[str, list[dict[str, Any]]]) -> None:
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "made_of": plan.made_of,
        "vocab_size": len(load_tokenizer(plan.work / "tokenizer")),
        "dtype": str(dtype),
        "weights": plan.weights,
        "sources": report.by_source(corpus.sources, plan.found, splits),
        "splits": splits,
    }
    replace_file(plan.work / MANIFEST, manifest_text(manifest))
