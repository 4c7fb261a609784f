"""Where documents come from: text files, JSON lines, a data set of `datasets`, the texts that ship with the package.

Files are read line by line as bytes, so that an error can say where it is: file and byte, or file and line.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from hybridlm.data.austen import austen_paths
from hybridlm.errors import UserError

_JSON_LINES = (".jsonl", ".ndjson")
_TEXT = (".txt", ".md", ".text")


@dataclass(config=ConfigDict(extra="forbid", use_attribute_docstrings=True), kw_only=True)
class Source:
    """One place that documents come from: exactly one of `path`, `dataset` and `builtin`."""

    path: str | None = None
    """A text file, a .jsonl file, a folder of such files (in order of their names, also below), or a glob pattern."""
    dataset: str | None = None
    """A data set: a folder made by `save_to_disk`, or a name that `datasets.load_dataset` knows."""
    builtin: Literal["austen"] | None = None
    """Texts that come with the package: austen, two novels."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a document is in a text file; paragraphs are separated by blank lines."""
    field: str = "text"
    """JSON lines and data sets: the field that holds the text."""
    name: str | None = None
    """Data sets: the configuration, where there are several."""
    split: str = "train"
    """Data sets: the split to read."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [name for name in ("path", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'path', 'dataset', 'builtin'; found {' and '.join(given) or 'none'}")
        if self.dataset is None and (self.name is not None or self.split != "train"):
            raise ValueError("'name' and 'split' belong to a data set; leave them out, or give 'dataset'")
        if self.dataset is not None and self.documents != "file":
            raise ValueError("'documents' belongs to text files; each row of a data set is a document")
        if self.builtin is not None and self.field != "text":
            raise ValueError("'field' belongs to JSON lines and data sets; leave it out")
        return self


class Corpus:
    """All documents of some sources, in a fixed order, as often as it is iterated. Empty ones are left out and
    counted."""

    def __init__(self, sources: list[Source]):
        self.sources = sources
        self.empty = 0

    def __iter__(self) -> Iterator[str]:
        self.empty = 0
        for source in self.sources:
            for text in _documents(source):
                text = text.replace("\r\n", "\n").removeprefix("\ufeff")
                if not _encodable(text):
                    raise UserError(
                        f"sources: a document of {source.path or source.dataset!r} holds half a surrogate pair, "
                        f"which is no character: {text[:40]!r}... Remove it first."
                    )
                if text.strip():
                    yield text
                else:
                    self.empty += 1


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _documents(source: Source) -> Iterator[str]:
    if source.dataset is not None:
        yield from _dataset(source)
        return
    for path in austen_paths() if source.builtin == "austen" else _paths(source.path or ""):
        if path.suffix.lower() in _JSON_LINES:
            yield from _json_lines(path, source.field)
        else:
            yield from _text_file(path, source.documents)


def _paths(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern names. Raises UserError where there are none."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        readable = _TEXT + _JSON_LINES
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in readable)
        if not found:
            raise UserError(
                f"sources: folder {pattern!r} holds no {', '.join(readable)} file. Name the files themselves."
            )
        return found
    found = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    if not found:
        kind = "no file matches this pattern" if glob.has_magic(pattern) else "there is no such file or folder"
        raise UserError(
            f"sources: {pattern!r}: {kind}. Check the path; it is read from the working folder, {Path.cwd()}."
        )
    return found


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends. Raises UserError with the byte offset of what is no text."""
    offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                zero = line.find(b"\0")
                if zero >= 0:
                    raise UserError(
                        f"{path}: byte {offset + zero} is 0, so this is a binary file. Give plain UTF-8 text or JSON "
                        f"lines."
                    )
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}). Convert the file first, "
                        "e.g. `iconv -f latin1 -t utf-8`."
                    ) from None
                offset += len(line)
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror}).") from error
    if offset == 0:
        raise UserError(f"{path}: the file is empty. Remove it from the sources, or fill it.")


def _text_file(path: Path, documents: str) -> Iterator[str]:
    if documents == "file":
        yield "".join(_lines(path))
    elif documents == "line":
        yield from (line.rstrip("\r\n") for line in _lines(path))
    else:
        paragraph: list[str] = []
        for line in _lines(path):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
        if paragraph:
            yield "".join(paragraph)


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not a JSON value ({error.msg} at column {error.colno}). Write one JSON object a "
                f"line."
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{path}:{number}: no text in field {field!r}; the line has {found}. Set `field` to the one that "
                f"holds it."
            )
        yield row[field]


def _dataset(source: Source) -> Iterator[str]:
    import datasets  # slow to import, and few runs need it

    folder = Path(source.dataset or "")
    data: Any
    try:
        if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
            data = datasets.load_from_disk(str(folder))
            if isinstance(data, datasets.DatasetDict):
                data = data[source.split]
            elif source.split != "train":
                raise ValueError("the saved data set has no splits; leave 'split' out")
        else:
            data = datasets.load_dataset(str(source.dataset), source.name, split=source.split)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"sources: dataset {source.dataset!r} (split {source.split!r}) cannot be loaded: {error}. Give a folder "
            f"made by "
            "save_to_disk, or a name on the Hub while there is a network."
        ) from error
    if source.field not in data.column_names:
        raise UserError(
            f"sources: dataset {source.dataset!r} has no field {source.field!r}; it has {data.column_names}. Set "
            f"`field`."
        )
    for number, row in enumerate(data):
        if not isinstance(row[source.field], str):
            raise UserError(
                f"sources: dataset {source.dataset!r}, row {number}: field {source.field!r} is "
                f"{row[source.field]!r}, no text. Remove such rows first."
            )
        yield row[source.field]
