"""metrics.jsonl: one row for each optimizer step, and one for each validation.

A training row: step (steps done, from 1), loss (nats per token of this step), lr, epsilon (null without annealed
layers), grad_norm (before clipping; null where fp16 overflowed and the update was left out), tokens (read so far),
tokens_per_second (this step's tokens by its wall time, data waiting included; validation, samples and checkpoints are
outside), seconds (wall time of the run so far, everything included); mfu (model FLOPs by what the GPUs can do at best)
where the peak of the device is known.
A validation row: step, bits_per_byte, loss (nats
per text token), n_bytes, n_tokens, windows, epsilon = 0, seconds. Not-a-number is never written: a run stops before it
gets here.
"""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from hybridlm.errors import UserError
from hybridlm.files import replace_file


class JsonLines:
    """Appends rows to a file. Rows of steps after `keep_until` (by default all), and a torn last line, are cut
    off first."""

    def __init__(self, path: Path, keep_until: int = -1):
        self.path = path
        if path.exists():
            kept = [json.dumps(row) for row in read_rows(path) if row["step"] <= keep_until]
            replace_file(path, "".join(line + "\n" for line in kept))
        self._file: TextIO = path.open(
            "a", encoding="utf-8", buffering=1
        )  # a line at a time: readable while the run goes on

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Puts what was written on the disk, as a checkpoint that follows will count on it."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut short by a crash is left out."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number} is no JSON ({error}). Restore the file, or move it away to start a new record."
            ) from None
    return rows
