"""Where documents come from, as a recipe says it, and all of them in their order.

The order is that of the sources, of a source's files by name, and of a file's documents. Documents are read one after
another; only the one in hand is in memory, all of it: a text file that is one document (`documents: file`) needs
several times its size, so a file of many gigabytes is better cut into paragraphs or lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from hybridlm.data.austen import LICENSE, austen_paths
from hybridlm.data.find import JSON_LINES, PARQUET, find_files, kind
from hybridlm.data.tables import data_set, parquet
from hybridlm.data.texts import json_lines, text_file
from hybridlm.errors import UserError

_NAMED = 10
"""Empty files that a message names."""


@dataclass(config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False), kw_only=True)
class Source:
    """One place that documents come from: exactly one of `path`, `dataset` and `builtin`."""

    path: str | None = None
    """A file of text (.txt, .md, .text), JSON lines (.jsonl, .ndjson) or Parquet (.parquet), text and JSON lines also
    as .gz or .zst; a folder of such files (in order of their names, also below), or a glob pattern."""
    dataset: str | None = None
    """A data set: a folder made by `save_to_disk`, or a name that `datasets.load_dataset` knows."""
    builtin: Literal["austen"] | None = None
    """Texts that come with the package: austen, two novels."""
    weight: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """How often an epoch of training reads this source: 2 twice, 0.5 one half (the next epoch the other one), 0 never.
    Validation reads every source once. Changing it tokenises nothing anew. In a recipe it belongs to the run: others
    read the same data folder with weights of their own."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a document is in a text file; paragraphs are separated by blank lines. A document is held in memory."""
    field: str = "text"
    """JSON lines, Parquet and data sets: the field or column that holds the text."""
    name: str | None = None
    """Data sets: the configuration, where there are several."""
    split: str = "train"
    """Data sets: the split to read."""
    license: str | None = None
    """Licence of the texts, for the card of a model: an SPDX identifier, or words. It changes nothing else."""
    streaming: bool = True
    """Data sets: read the set where it lies (twice) where that is possible; false: download it to the cache first."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [name for name in ("path", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'path', 'dataset', 'builtin'; found {' and '.join(given) or 'none'}")
        if self.dataset is None and (self.name is not None or self.split != "train" or not self.streaming):
            raise ValueError("'name', 'split' and 'streaming' belong to a data set; leave them out, or give 'dataset'")
        if self.dataset is not None and self.documents != "file":
            raise ValueError("'documents' belongs to text files; each row of a data set is a document")
        if self.builtin is not None and self.field != "text":
            raise ValueError("'field' belongs to JSON lines, Parquet and data sets; leave it out")
        return self

    @property
    def label(self) -> str:
        """What the source is called in reports and errors."""
        return self.path or self.dataset or self.builtin or ""

    def origin(self) -> dict[str, str | None]:
        """Its kind (path, dataset, builtin; saved: a data set in a folder), and the licence of its texts; None where
        that is not known."""
        kind = next(name for name in ("path", "dataset", "builtin") if getattr(self, name) is not None)
        if self.dataset is not None and Path(self.dataset).exists():
            kind = "saved"
        return {"kind": kind, "license": self.license or (LICENSE if self.builtin is not None else None)}


def check_paths(sources: list[Source]) -> None:
    """Raises UserError with all paths of the sources that name no file, and files that are empty. Nothing is opened."""
    problems: list[str] = []
    empty: list[str] = []
    for source in sources:
        try:
            if source.path is not None:
                empty += [str(file) for file in find_files(source.path) if _is_empty(file)]
        except UserError as error:
            problems.append(str(error))
    empty = list(dict.fromkeys(empty))
    if len(empty) == 1:
        problems.append(f"{empty[0]}: the file is empty. Remove it from the sources, or fill it.")
    elif empty:
        more = f" and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
        names = ", ".join(empty[:_NAMED])
        problems.append(f"{names}{more}: these files are empty. Remove them from the sources, or fill them.")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _is_empty(file: Path) -> bool:
    try:
        return file.stat().st_size == 0
    except OSError:  # told where it is read
        return False


class Document(NamedTuple):
    """A document that is not empty."""

    source: int
    """Which of the sources, from 0."""
    text: str
    data: bytes
    """The text in UTF-8."""


class Corpus:
    """All documents of some sources, in a fixed order, as often as it is iterated. Empty ones are left out and
    counted.

    empty_by_source: how many were left out in the last pass so far; empty: their sum.
    """

    def __init__(self, sources: list[Source]):
        self.sources = sources
        self.empty_by_source = [0] * len(sources)

    @property
    def empty(self) -> int:
        """Documents without text, of all sources, that the last pass left out."""
        return sum(self.empty_by_source)

    def __iter__(self) -> Iterator[str]:
        for document in self.documents():
            yield document.text

    def documents(self) -> Iterator[Document]:
        """The documents with what is known of them. Raises UserError that names the place of what cannot be read."""
        self.empty_by_source = [0] * len(self.sources)
        for number, source in enumerate(self.sources):
            for text in _texts(source):
                text = text.replace("\r\n", "\n").removeprefix("\ufeff")
                try:
                    data = text.encode()
                except UnicodeEncodeError:
                    raise UserError(
                        f"sources: a document of {source.label!r} holds half a surrogate pair, which is no character: "
                        f"{text[:40]!r}... Remove it first."
                    ) from None
                if text.strip():
                    yield Document(number, text, data)
                else:
                    self.empty_by_source[number] += 1


def _texts(source: Source) -> Iterator[str]:
    if source.dataset is not None:
        yield from data_set(source.dataset, source.name, source.split, source.field, source.streaming)
        return
    for path in austen_paths() if source.builtin == "austen" else find_files(source.path or ""):
        yield from _file(path, source)


def _file(path: Path, source: Source) -> Iterator[str]:
    found = kind(path)
    if found in JSON_LINES:
        return json_lines(path, source.field)
    if found in PARQUET:
        return parquet(path, source.field)
    return text_file(path, source.documents)
