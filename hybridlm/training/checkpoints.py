"""Checkpoint folders: written aside, put on the disk, renamed. A folder under its final name is whole.

RUN/checkpoints/step-00000100/           what `from_pretrained` reads: model, tokenizer, generation_config
RUN/checkpoints/step-00000100/training_state/
    optimizer.pt                         AdamW's state (and the loss scaler's, in fp16)
    rng.pt                               torch's random state of each process
    state.json                           step, tokens, seconds, epsilon, data fingerprint, the settings that must not
    change
RUN/final/                               the model at the end, epsilon = 0, with state.json only
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

STATE = "training_state"


def replace_file(path: Path, text: str) -> None:
    """Writes a text file so that the path holds either the old or the new text, also after a crash."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `target` out of what `fill(folder)` writes; an older `target` is replaced once the new one is
    whole.

    If `fill` fails, nothing is left behind and an older `target` is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        fill(aside)
        _fsync_tree(aside)
        if target.exists():
            os.rename(target, old)
        os.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    _fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


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


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        _fsync_folder(Path(root))


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
