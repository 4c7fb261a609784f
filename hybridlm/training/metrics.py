"""metrics.jsonl: one row for each optimizer step, and one for each validation.

A training row: step (steps done, from 1), loss (nats per token of this step), lr, epsilon (null without annealed
layers), grad_norm (before clipping; null where fp16 overflowed and the update was left out), tokens (read so far),
tokens_per_second (this step's tokens by its wall time, data waiting included; validation, samples and checkpoints are
outside), real_tokens_per_second (over the last ten minutes of real time, or since the session's first step, everything
included), seconds (wall time of the run so far, everything included). With `training.z_loss` also z_loss (mean of
(log Z)^2 over this step's targets, not weighted, not in loss), and every `logging.memory_every` steps memory (a list,
one entry for each memory cell: `memory.py`; no such key in a stack without them), and mfu (model FLOPs by
what the GPUs can do at best) where the peak of the device is known.
A validation row: step, bits_per_byte, with training.ema_decay bits_per_byte_ema (of the averaged weights), loss (nats
per text token), n_bytes, n_tokens, windows, epsilon = 0, seconds. Not-a-number is never written: a run stops before it
gets here. With `nfsm` layers both kinds have exploration too, the scale of their noise.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.files import replace_pieces


class JsonLines:
    """Appends rows to a file. Rows of steps after `keep_until` (by default all), and a torn last line, are cut off
    first; with `validation_due`, the validation of step `keep_until` too, which is about to come again. The others stay
    byte for byte. Memory does not grow with them.

    A row that cannot be written, on a full disk for example, waits and is tried again with every row that follows;
    `report` is told of the first one. `sync` raises OSError while any waits.
    """

    def __init__(
        self,
        path: Path,
        keep_until: int = -1,
        report: Callable[[str], None] | None = None,
        validation_due: bool = False,
    ):
        self.path, self._report = path, report

        def stays(row: dict[str, Any]) -> bool:
            again = validation_due and row["step"] == keep_until and "bits_per_byte" in row
            return row["step"] <= keep_until and not again

        try:
            if path.exists():
                replace_pieces(path, (line for line, row in _readable(path, keep_until) if stays(row)))
            self._file = path.open("ab", buffering=0)  # readable while the run goes on
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}). Make room, or choose another run.folder."
            ) from error
        self._end = path.stat().st_size
        self._waiting: list[bytes] = []

    def write(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(row, allow_nan=False).encode() + b"\n")
        try:
            self._put()
        except OSError as error:
            if len(self._waiting) == 1 and self._report is not None:
                self._report(
                    f"{self.path} cannot be written ({error.strerror}). Its rows are kept in memory and tried again; "
                    "the training goes on."
                )

    def sync(self) -> None:
        """Puts all rows on the disk, as a checkpoint that follows will count on them."""
        self._put()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):
            self._put()
        self._file.close()

    def _put(self) -> None:
        while self._waiting:
            rest = self._waiting[0]
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._end)  # no half line in front of the next try
                raise
            self._end += len(self._waiting.pop(0))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a file, each with its number from 1; a last one without its end is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def _readable(path: Path, needed: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each row as it stands in the file, and what it says, up to the first line that a power cut left unreadable.
    Raises UserError where that comes before the last row of step `needed`, which was on the disk before its checkpoint
    was."""
    last = -1
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise TypeError(f"step is {row['step']!r}")
            last = row["step"]
        except (ValueError, KeyError, TypeError) as error:
            if last >= needed:
                return
            raise UserError(
                f"{path}:{number} is no row of a record ({error}). Restore the file, or move it away to begin anew."
            ) from None
        yield line, row


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics file, one after another; a last line that was cut short by a crash is left out. Raises
    UserError for any other line that is no JSON object."""
    for number, line in _lines(path):
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError(f"but {line[:20].decode('utf-8', 'replace').strip()}")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number} is no JSON object ({error}). Where it is a run's metrics.jsonl, restore it, or move "
                "it away to start a new record."
            ) from None
        yield row


def missing_steps(path: Path, until: int) -> list[tuple[int, int]]:
    """The steps from 1 to `until` that have no training row, each stretch as its first and last one. For a file that
    `JsonLines` has looked through, or none."""
    missing, last = [], 0
    for row in each_row(path) if path.exists() else ():
        if "bits_per_byte" not in row and row["step"] > last:
            if row["step"] > last + 1:
                missing.append((last + 1, row["step"] - 1))
            last = row["step"]
    return [*missing, (last + 1, until)] if last < until else missing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All of them."""
    return list(each_row(path))


def last_validation(path: Path) -> dict[str, Any]:
    """The last validation row of a metrics file; empty where there is none, or no file."""
    found: dict[str, Any] = {}
    if path.exists():
        for row in each_row(path):
            found = row if "bits_per_byte" in row else found
    return found
