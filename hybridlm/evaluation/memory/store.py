"""The records of runs: a file of JSON lines for each task, a line for each run.

A line is written at once when its run is done, so a run counts or it does not. A torn line, of a machine that went
down, is left out; its run is done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.files import append_line, try_folder

_PARTS = {"task", "form", "mixer", "seed", "changed", "settings", "tests", "steps", "rows", "loss"}
Key = tuple[str, str, str, int, str]


def key_of(record: dict[str, Any]) -> Key:
    """What a run is of: task, form, mixer, seed, and the fields of the recipe that were changed."""
    changed = json.dumps(record["changed"], sort_keys=True)
    return record["task"], record["form"], record["mixer"], record["seed"], changed


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records were made with the same settings: defaults and definitions of tasks change from version to
    version. A setting that one of them does not know is of another version too, and does not count."""
    first, second = one["settings"], other["settings"]
    return all(first[name] == second[name] for name in first.keys() & second.keys())


class Store:
    """A folder of records. Raises UserError where it cannot be one."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not str(folder):
            raise UserError("out='': must be given. Give a folder for the records.")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"out={str(folder)!r}: is a file. Give a folder for the records.")

    def prepare(self) -> None:
        """Makes the folder. Raises UserError where it cannot be written to."""
        try:
            try_folder(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={str(self.folder)!r}: cannot be written to ({error.strerror}).") from None

    def records(self) -> list[dict[str, Any]]:
        """All records, one for each key: the one written last. Those of a task are in the order of their writing."""
        found: dict[Key, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for record in _read(path):
                key = key_of(record)
                found.pop(key, None)
                found[key] = record
        return list(found.values())

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record to its task's file. Raises UserError where that cannot be written."""
        path = self.folder / f"{record['task']}.jsonl"
        try:
            append_line(path, json.dumps(record, allow_nan=False))
        except OSError as error:
            raise UserError(f"{path}: cannot be written any more ({error.strerror}).") from None


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"records {path}: cannot be read ({error.strerror}).") from None
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # torn
            continue
        if not isinstance(record, dict) or not set(record) >= _PARTS:
            raise UserError(f"records {path}: not written by the memory suite. Take the file out of the folder.")
        yield record
