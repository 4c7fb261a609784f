"""Checkpoint folders: written aside, put on the disk, renamed. A folder under its final name is whole.

RUN/checkpoints/step-00000100/           what `from_pretrained` reads: model, tokenizer, generation_config
RUN/checkpoints/step-00000100/training_state/
    optimizer.pt                         the optimizer's state (and the loss scaler's, in fp16)
    ema.pt                               the averaged weights, with training.ema_decay
    rng.pt                               torch's random state of each process
    state.json                           step, tokens, seconds, epsilon, data fingerprint, the settings that must not
    change
RUN/final/                               the model at the end, epsilon = 0, with state.json only
RUN/final-ema/                           the averaged weights at the end, in the same form
RUN/best/                                the model with the fewest bits per byte so far, in the same form
"""

import os
import shutil
from pathlib import Path

STATE = "training_state"


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if (path / STATE / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def prune(run: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints, and what crashed processes left half-written."""
    for path in checkpoints(run)[:-keep]:
        # Renamed first: a removal that is cut short leaves no torn folder under a checkpoint's name.
        doomed = path.with_name(f".{path.name}.old-{os.getpid()}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    remove_leftovers(run)


def remove_leftovers(run: Path) -> None:
    """Removes what a killed process left half-written or half-removed."""
    for left in [*run.glob(".*.partial-*"), *run.glob(".*.old-*"), *(run / "checkpoints").glob(".step-*")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
