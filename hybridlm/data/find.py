"""Which files a path, a folder or a glob pattern names, and what kind each is.

What cannot be looked at (a folder without permission, a link to nowhere) is an error: left out silently, a part of the
corpus would be missing.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import NoReturn

from hybridlm.errors import UserError
from hybridlm.files import expanded

TEXT = (".txt", ".md", ".text")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")


def kind(path: Path) -> str:
    """The ending that says what is in a file, in lower case and without the compression: a.JSONL.gz -> .jsonl."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def compression(path: Path) -> str | None:
    """`.gz`, `.zst` or None."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else None


def readable(path: Path) -> bool:
    """Whether a file found in a folder is one of ours by its name."""
    found = kind(path)
    return found in TEXT + JSON_LINES or (found in PARQUET and compression(path) is None)


def find_files(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern names, sorted. Raises UserError where there are none."""
    try:
        return _find(pattern)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a folder without permission
        name = getattr(error, "filename", None) or pattern
        raise UserError(f"sources: {str(name)!r}: it cannot be looked at ({_reason(error)}). Check the path.") from None


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _find(pattern: str) -> list[Path]:
    path = expanded(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _below(path)
        if not found:
            kinds = ", ".join(TEXT + JSON_LINES + PARQUET)
            raise UserError(
                f"sources: folder {pattern!r} holds no {kinds} file (text and JSON lines also with .gz or .zst). "
                "Name the files themselves."
            )
        return found
    found = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    if not found:
        if path.is_symlink():
            _broken(path)
        what = "no file matches this pattern" if glob.has_magic(pattern) else "there is no such file or folder"
        raise UserError(
            f"sources: {pattern!r}: {what}. Check the path; it is read from the working folder, {Path.cwd()}."
        )
    return found


def _below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(root, name)
            if not readable(path):
                continue
            if path.is_file():
                found.append(path)
            elif not path.exists():
                _broken(path)
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def _broken(path: Path) -> NoReturn:
    raise UserError(f"sources: {path} is a link to {os.readlink(path)!r}, which is not there. Mend or remove the link.")
