"""From documents to a data folder: tokenizer, token shards with a document index, and a manifest.

    OUT/tokenizer/                    the tokenizer, as `save_pretrained` writes it
    OUT/train-00000.bin               tokens, uint16 or uint32, documents one after another, sources one after another
    OUT/train-00000.docs.npy          int64 (documents + 1): where each begins, and the end
    OUT/train-00000.bytes.npy         int64 (documents): UTF-8 bytes of each one's text
    OUT/validation-00000.*            the same
    OUT/manifest.json                 format, fingerprint, checksums, weights, and what came from each source

The sources are read twice: `scan` looks at every document, `folder` tokenises, in several processes if asked to. One
document, a few batches, and about 20 bytes for each document of the corpus are in memory. The fingerprint is a function
of the content and the settings; neither workers nor weights are part of it. The folder is written aside under the name
.OUT.unfinished and renamed, so that it is whole or not there; a run that was stopped goes on from the shards there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from transformers import PreTrainedTokenizerBase

from hybridlm.data import report
from hybridlm.data.folder import Plan, write_data_folder
from hybridlm.data.progress import PrepareProgress
from hybridlm.data.sample import Sample
from hybridlm.data.scan import Scan, scan
from hybridlm.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, TokenShards, manifest_text, read_manifest
from hybridlm.data.sources import Corpus, Source, check_paths
from hybridlm.data.split import ValidationConfig
from hybridlm.data.tokenizer import LARGEST_VOCABULARY, SMALLEST_VOCABULARY, load_tokenizer
from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.files import check_above, expanded, locked, remove_dead_writes, replace_file


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
    tokenizer_bytes: Annotated[int, Field(ge=1_000_000)] = 500_000_000
    """Train the tokenizer on at most so many bytes, an even sample of the training split where it is larger (weights
    do not count). The trainer's memory grows with them."""
    deduplicate: bool = True
    """Leave out documents whose text is that of an earlier one, also of another source. What is to be read more often
    has a `weight` for it."""
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    """What is held out."""
    seed: int = 0
    """Seed of the choice of validation documents."""
    shard_tokens: Annotated[int, Field(ge=1)] = 50_000_000
    """Tokens after which a new shard is begun; a document is never cut. A run that was stopped goes on from the last
    finished shard."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that tokenise; 0 or 1: this one. The data folder does not depend on it."""
    overwrite: bool = False
    """Replace a data folder that was made from something else."""

    @field_validator("output")
    @classmethod
    def _has_a_name(cls, output: str) -> str:
        if not Path(output).name:  # it is written aside and renamed
            raise ValueError("must be the path of a folder with a name of its own, such as prepared/mine")
        return output

    @model_validator(mode="after")
    def _something_is_read(self) -> PrepareConfig:
        if not any(source.weight for source in self.sources):
            raise ValueError(
                "the weights of all sources are 0, so that nothing would be read; give one a weight above 0"
            )
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> PrepareConfig:
        if self.vocab_size is not None and self.tokenizer is not None:
            raise ValueError("give only one of 'vocab_size' (train a tokenizer) and 'tokenizer' (take one)")
        if self.vocab_size is None and self.tokenizer is None:
            self.vocab_size = 2048
        return self


def prepare(config: PrepareConfig, log: Callable[[str], None] = print, *, set_weights: bool = True) -> Path:
    """Makes the data folder and returns its path; one that was made from the same things is kept, and gets the weights
    and licences of `config` with `set_weights`. Raises UserError."""
    output = expanded(config.output)
    _put_right(output)
    check_paths(config.sources)
    corpus = Corpus(config.sources)
    given = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    sample = Sample(config.tokenizer_bytes) if given is None else None
    try:
        with PrepareProgress(log) as progress:
            found = scan(
                corpus,
                config.validation,
                config.seed,
                deduplicate=config.deduplicate,
                sample=sample,
                progress=progress,
            )
            progress.pause()
            made_of = _ingredients(config, found, given)
            if not _keep(config, output, made_of, log, set_weights):
                _check_splits(config, found)
                plan = Plan(output, made_of, fingerprint(made_of), found, source_weights(config))
                _make(config, plan, corpus, given or sample, progress, set_weights)
    finally:
        if sample is not None:
            sample.close()
    return output


def _put_right(output: Path) -> None:
    try:
        check_above(output.parent)
        remove_dead_writes(output)
    except OSError as error:
        raise _unwritable(output, error) from error


def _make(
    config: PrepareConfig,
    plan: Plan,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase | Sample | None,
    progress: PrepareProgress,
    set_weights: bool,
) -> None:
    """Writes the folder, one process at a time, and reports."""
    log, output = progress.log, plan.output
    assert tokenizer is not None, "one is given, or there is text to train one on"
    try:
        with locked(output, lambda: log(f"Another process is making {output}; waiting for it.")):
            if _keep(config, output, plan.made_of, log, set_weights):
                return
            _write_shards(config, plan, corpus, tokenizer, progress)
    except OSError as error:
        raise _unwritable(output, error) from error
    log(f"Data folder {output} written.")
    for line in report.lines(read_manifest(output)):
        log(line)


def _unwritable(output: Path, error: OSError) -> UserError:
    return UserError(
        f"output={str(output)!r}: it cannot be written ({error.strerror}). Choose a folder that can be. "
        "What was there before is there still."
    )


def _write_shards(
    config: PrepareConfig,
    plan: Plan,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase | Sample,
    progress: PrepareProgress,
) -> None:
    write_data_folder(
        plan,
        corpus,
        tokenizer,
        progress,
        vocab_size=config.vocab_size or 0,
        validation=config.validation,
        seed=config.seed,
        shard_tokens=config.shard_tokens,
        workers=config.workers,
    )


def _ingredients(config: PrepareConfig, found: Scan, given: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """Everything that decides the folder's content; the fingerprint is its hash."""
    made_of = {
        "documents": len(found.dropped),
        "content": found.content,
        "sources": found.documents,
        "deduplicate": config.deduplicate,
        "tokenizer": f"bpe-{config.vocab_size}" if given is None else _tokenizer_hash(given),
        "validation": {"by": config.validation.by, "share": config.validation.share},
        "seed": config.seed,
        "shard_tokens": config.shard_tokens,
        "format_version": FORMAT_VERSION,
    }
    return made_of | ({"tokenizer_bytes": config.tokenizer_bytes} if given is None else {})


def fingerprint(made_of: dict[str, Any]) -> str:
    """Hash of everything that decides a folder's content."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def source_weights(config: PrepareConfig) -> list[float]:
    """How often an epoch reads each source."""
    return [source.weight for source in config.sources]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_splits(config: PrepareConfig, found: Scan) -> None:
    for split, documents in zip(SPLITS, found.parts, strict=True):
        if not documents and (split == "train" or config.validation.share > 0):
            raise UserError(
                f"validation: the {split} split got no document with by={config.validation.by!r}, "
                f"share={config.validation.share}, seed={config.seed}. With few documents set validation.by: position, "
                "or share: 0 for no validation."
            )


def _keep(
    config: PrepareConfig, output: Path, made_of: dict[str, Any], log: Callable[[str], None], set_weights: bool
) -> bool:
    """Whether `output` is what would be made; it then gets the weights of `config`, if it is to. Raises UserError where
    it is something else that must not be replaced."""
    wanted = fingerprint(made_of)
    if not _is_finished(output, wanted, made_of, config.overwrite):
        return False
    log(f"Data folder {output} is up to date (fingerprint {wanted[:12]}).")
    if set_weights:
        try:
            _say_anew(config, output, log)
        except OSError as error:
            raise _unwritable(output, error) from error
    return True


def _say_anew(config: PrepareConfig, output: Path, log: Callable[[str], None]) -> None:
    """Puts into the manifest what is no part of the content: weights and licences of the sources. Raises OSError."""
    manifest = read_manifest(output)
    before = manifest_text(manifest)
    if manifest["weights"] != source_weights(config):
        log(f"  Its sources' weights were {manifest['weights']} and are now {source_weights(config)}.")
        manifest["weights"] = source_weights(config)
    for entry, source in zip(manifest["sources"], config.sources, strict=True):
        entry |= source.origin()
    if manifest_text(manifest) != before:
        replace_file(output / MANIFEST, manifest_text(manifest))


def _is_finished(output: Path, wanted: str, made_of: dict[str, Any], overwrite: bool) -> bool:
    """Whether `output` is what would be made. Raises UserError where it is something else that must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / MANIFEST).is_file():
        raise UserError(
            f"output={str(output)!r}: it exists and is no data folder. Choose another path; nothing was touched."
        )
    try:
        before = read_manifest(output)
        if before["fingerprint"] == wanted:
            _check_whole(output, checksums=overwrite)
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


def _check_whole(output: Path, checksums: bool) -> None:
    """Raises UserError where a file of the folder is missing, cut or cannot be loaded; with `checksums` also where the
    content of a shard is not what was written. That reads all of it: done where the folder may be replaced, which is
    what the advice for a damaged one is."""
    for split in SPLITS:
        shards = TokenShards(output, split)
        if checksums:
            shards.verify()
    _ = TokenShards(output, "train").tokenizer
