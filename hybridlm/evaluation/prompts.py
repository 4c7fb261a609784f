"""Prompts from a file of JSON lines, and the file that what is written to them goes to, line by line.

The output has the lines of the input in their order, so that a count of its whole lines says where to go on. Beside it
a small file says with what they were written; a call with other settings is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hybridlm.data.texts import is_text, json_rows
from hybridlm.errors import UserError
from hybridlm.evaluation.places import check_out
from hybridlm.files import expanded, replace_file

WRITTEN = ("text", "seed", "tokens", "finish_reason")
"""Fields that the output adds to a line."""


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, each with a text in `prompt`. Raises UserError, with the line, for anything
    else, and for fields that the output would replace."""
    path, rows = expanded(path), []
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f'--input {path}: the file is empty. Give lines such as {{"prompt": "It is a truth"}}.')
    for number, row in json_rows(path):
        if not isinstance(row, dict):
            raise UserError(
                f'{path}:{number}: a {type(row).__name__}, not an object. Write lines such as {{"prompt": "It is"}}.'
            )
        if not isinstance(row.get("prompt"), str):
            found = f"{type(row['prompt']).__name__} in it" if "prompt" in row else f"fields {', '.join(row) or 'none'}"
            raise UserError(f"{path}:{number}: no text in the field 'prompt' ({found}). Give every line one.")
        if not is_text(row["prompt"]):
            raise UserError(f"{path}:{number}: 'prompt' holds half a surrogate pair, which is no character. Remove it.")
        taken = [name for name in WRITTEN if name in row]
        if taken:
            raise UserError(
                f"{path}:{number}: it has the field {taken[0]!r}, where the output says what was written. Rename it."
            )
        rows.append(row)
    if not rows:
        raise UserError(f"--input {path}: all of its lines are blank. Give prompts.")
    return rows


class Output:
    """The output file of prompts, each of which is answered `answers` times.

    Raises UserError where no file can be written, where one stands that no such call began, and where its lines are
    not those of the prompts.
    """

    def __init__(self, path: str | Path, rows: list[dict[str, Any]], answers: int = 1):
        self.path, self.rows, self.answers = check_out(path, "--output"), rows, answers
        self.notes = self.path.with_name(f"{self.path.name}.run.json")
        self.begun = self.path.exists() and self.path.stat().st_size > 0
        if self.begun and not self.notes.is_file():
            raise UserError(
                f"--output {self.path}: a file stands there with no {self.notes.name} beside it, so that nobody knows "
                "how it was written. Give another name."
            )
        if not self.begun and self.notes.exists() and not _is_ours(self.notes):  # it may be the input itself
            raise UserError(
                f"--output {self.path}: {self.notes.name} stands beside it, where the settings would go, and no such "
                "command wrote it. Give another name."
            )

    @property
    def wanted(self) -> int:
        """How many lines the whole output has."""
        return len(self.rows) * self.answers

    def check_settings(self, **settings: Any) -> None:
        """Raises UserError where lines are there that were written with other values of these settings."""
        if not self.begun:
            return
        try:
            before = json.loads(self.notes.read_text(encoding="utf-8"))
            differing = [
                f"{name}={before[name]} (now {value})" for name, value in settings.items() if before[name] != value
            ]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"--output {self.path}: {self.notes.name} beside it is damaged. Give another name."
            ) from None
        if differing:
            raise UserError(
                f"--output {self.path}: it was begun with {', '.join(differing)}. Give the same to go on, or another "
                "name to begin anew."
            )

    def begin(self, **settings: Any) -> int:
        """How many whole lines are there; half a line behind them is cut off. Writes down the settings of a new one."""
        self.check_settings(**settings)
        if not self.begun:
            replace_file(self.notes, json.dumps(settings, indent=1) + "\n")
            return 0
        count = whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._check_line(count, line)
                count, whole = count + 1, whole + len(line)
        os.truncate(self.path, whole)
        return count

    def append(self, start: int, written: list[dict[str, Any]]) -> None:
        """Writes lines `start`, `start` + 1, ...: the fields of their prompts, and those that were written. Raises
        UserError where that fails, as on a full disk."""
        lines = [_line({**self.rows[(start + k) // self.answers], **fields}) for k, fields in enumerate(written)]
        try:
            with self.path.open("ab") as file:
                file.write("".join(lines).encode())
        except OSError as error:
            raise UserError(
                f"--output {self.path}: cannot be written ({error.strerror}). It keeps the lines before; make room and "
                "give the same command again to go on."
            ) from None

    def _check_line(self, index: int, line: bytes) -> None:
        place = f"{self.path}:{index + 1}"
        if index >= self.wanted:
            raise UserError(
                f"{place}: there are more lines than the input asks for. Give the same input, or another name."
            )
        try:
            found = json.loads(line)
            carried = {name: value for name, value in found.items() if name not in WRITTEN}
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{place}: not a line that this command wrote. Give another --output.") from None
        if _line(carried) != _line(self.rows[index // self.answers]):
            raise UserError(
                f"{place}: it answers another prompt than the input has there ({index // self.answers + 1}. prompt). "
                "Give the input as it was, longer if you like, or another --output."
            )


def _is_ours(notes: Path) -> bool:
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"max_new_tokens", "seed", "weights"} <= set(found)


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(row)) + "\n"
