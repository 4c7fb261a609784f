"""Text that a script puts into a page that people write: between two markers."""

from __future__ import annotations

from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.files import replace_file


def write_between(page: str | Path, text: str, begin: str, end: str) -> None:
    """Replaces what stands between the two markers of a page. Raises UserError where they are not there once each."""
    path = Path(page)
    old = check_between(page, begin, end)
    before, after = old[: old.index(begin) + len(begin)], old[old.index(end) :]
    replace_file(path, f"{before}\n{text}\n{after}")


def check_between(page: str | Path, begin: str, end: str) -> str:
    """What stands in a page. Raises UserError where the two markers are not there once each, in order."""
    path = Path(page)
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise UserError(f"{path}: the text goes between a line {begin} and a line {end}; put in one of each, in order.")
    return old
