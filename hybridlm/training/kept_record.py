"""What a run had written before it lost its checkpoints, or died before the first one: kept as it starts anew.

Its records go to `metrics.jsonl.old`, `samples.jsonl.old` and `sessions.jsonl.old`, then `.old2`, `.old3`: no start
removes what another one kept. The model in `best`, which may be all that is left of a long run, goes to `best.old`.
There is one such folder, so that a run that dies again and again before its first checkpoint does not fill the disk:
that of the later step.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.training.state import read_state


def keep_record(run: Path, log: Callable[[str], None]) -> None:
    """Gives the record of steps in `run`, which has no checkpoint, another name, and says so; does nothing where there
    is none."""
    metrics = run / "metrics.jsonl"
    step = _last_step(metrics)
    if not step:
        return
    number = next(n for n in range(1, 10**6) if not any(_old(run / name, n).exists() for name in _RECORDS))
    for name in _RECORDS:
        if (run / name).exists():
            os.rename(run / name, _old(run / name, number))
    best = " and its best model as best.old" if _keep_best(run / "best") else ""
    log(
        f"There is no checkpoint in {run}: the run starts anew. Its record before, up to step {step:,}, is kept as "
        f"{_old(metrics, number).name}{best}."
    )


_RECORDS = ("metrics.jsonl", "samples.jsonl", "sessions.jsonl")


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old{number if number > 1 else ''}")


def _last_step(metrics: Path) -> int:
    """The highest step in a record, whatever else is in it; 0 where it has none."""
    highest = 0
    if metrics.is_file():
        with metrics.open("rb") as file:
            for line in file:
                with suppress(ValueError, KeyError, TypeError, OverflowError):  # a damaged line
                    highest = max(highest, int(json.loads(line)["step"]))
    return highest


def _keep_best(best: Path) -> bool:
    old = best.with_name("best.old")
    if not best.is_dir() or _step(best) < _step(old):
        return False
    shutil.rmtree(old, ignore_errors=True)
    os.rename(best, old)
    return True


def _step(folder: Path) -> int:
    """-1 where it is not there or cannot be read."""
    try:
        return read_state(folder).step
    except UserError:
        return -1
