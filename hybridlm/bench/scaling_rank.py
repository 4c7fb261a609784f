"""A process of a run that `hybridlm.bench.scaling` measures: python -m hybridlm.bench.scaling_rank RECIPE FOLDER KEPT

Writes FOLDER/rankN.json: when each step ended and what the loopback interface had sent by then (null where it counts
nothing), and the most memory that was in use. KEPT: `returned`, for memory, or `kept`, as in `hybridlm pretrain`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hybridlm.allocator import returned_memory
from hybridlm.bench.timing import Memory
from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.config import load_config
from hybridlm.training.journal import Journal


class WatchedJournal(Journal):
    """Notes when each step ended. A step that is in the journal is over: its results have been waited for."""

    ends: list[float] = []  # noqa: RUF012  of the process, which has one run
    sent: list[int | None] = []  # noqa: RUF012

    def step(self, row: dict[str, Any], step_tokens: int, step_seconds: float) -> None:
        super().step(row, step_tokens, step_seconds)
        self.ends.append(time.perf_counter())
        self.sent.append(loopback_bytes())


def loopback_bytes() -> int | None:
    """What went through the loopback interface since the machine started; None where the system does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = next((line.partition(":")[2].split() for line in lines if line.strip().startswith("lo:")), None)
    return None if fields is None else int(fields[8])


def main(recipe: str, folder: str, kept: str) -> None:
    loop.Journal = WatchedJournal  # pyright: ignore[reportPrivateImportUsage]
    config = load_config(recipe)
    memory = Memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    memory.begin()
    with returned_memory() if kept == "returned" else nullcontext():
        loop.pretrain(config)
        found = {"peak": memory.peak(), "ends": WatchedJournal.ends, "sent": WatchedJournal.sent}
    Path(folder, f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
