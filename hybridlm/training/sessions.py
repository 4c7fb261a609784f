"""sessions.jsonl: a row for each session of a run: when, where, with what, and by which command it was started.

A row: started (UTC), step (steps done before it), command (null where it was started from Python), processes, and what
`machine` says: device, processor, cores, threads, system, versions, commit of the package. The main process alone
writes, so of several machines it is the first one's.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hybridlm.files import replace_file
from hybridlm.machine import machine, started_with

SESSIONS = "sessions.jsonl"


def note_session(run: Path, step: int, device: torch.device, processes: int) -> None:
    """Adds the row of a session that goes on from `step`. Raises OSError."""
    row = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": started_with(),
        "processes": processes,
    } | machine(device)
    rows = [*sessions(run), row]
    replace_file(run / SESSIONS, "".join(json.dumps(row) + "\n" for row in rows))


def sessions(run: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The rows, oldest first; lines that cannot be read are left out.

    until: only those whose work is in a checkpoint of that step. What a session did beyond the step that a later one
    went on from was lost.
    """
    path, found = run / SESSIONS, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
    if until is None:
        return found
    kept: list[dict[str, Any]] = []
    for row in found:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return [row for row in kept if row["step"] < until]
