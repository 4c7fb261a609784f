"""Checkpoint folders: written aside, put on the disk, renamed, and sealed with the checksums of all their files.

RUN/checkpoints/step-00000100/           what `from_pretrained` reads: model, tokenizer, generation_config
RUN/checkpoints/step-00000100/training_state/
    optimizer.pt                         the optimizer's state (and the loss scaler's, in fp16)
    ema.pt                               the averaged weights, with training.ema_decay
    sharded/                             both instead, where they are dealt out over the processes (parallel.kind:
                                         fsdp): a file of each process. Any number of processes, sharded or not, goes on
                                         from either form
    rng.pt                               torch's random state of each process
    carried.safetensors                  with data.carry_state: the states that the rows of the next step go on from,
                                         all rows in their order
    state.json                           step, tokens, seconds, epsilon, data fingerprint, the settings that must not
                                         change
    checksums.json                       sha256 of every other file; written last
RUN/final/                               the model at the end, epsilon = 0, with state.json and checksums.json only
RUN/final-ema/                           the averaged weights at the end, in the same form
RUN/best/                                the model with the fewest bits per byte so far, in the same form;
                                         once steps were undone, since then (early_stopping.py)

A rename is all or nothing, so what lies under a final name was whole once. The checksums find what happened to it
since: a disk that lost a block, a copy that was cut short, an edit.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.files import sha256, write_folder
from hybridlm.safe_loading import is_inside

STATE = "training_state"
CHECKSUMS = "checksums.json"
_WRITTEN = (
    *("best", "final", "final-ema"),
    *("config.yaml", "metrics.jsonl", "samples.jsonl", "sessions.jsonl", "tracker.json", "diverged.json"),
)
"""What a run writes aside; others, such as a report, may be writing there too."""
_NAME = re.compile(r"step-\d{8,}")


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; whether they are damaged is not looked at."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def newest_valid(run: Path, log: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint whose files are what was written; None where there is no checkpoint at all.

    Newer ones that are damaged are set aside as `step-N.damaged`, with a line each. Raises UserError where none is
    left: a run never starts anew by itself over what it cannot read.
    """
    damaged = []
    for path in reversed(checkpoints(run)):
        fault = damage(path)
        if fault is None:
            for broken, _ in damaged:
                set_aside(broken)
            return path
        log(f"{path} is damaged ({fault}) and is not used.")
        damaged.append((path, fault))
    if damaged:
        listing = "\n".join(f"  - {path}: {fault}" for path, fault in damaged)
        raise UserError(
            f"No checkpoint of {run} is whole:\n{listing}\nBring one back from a copy, remove {run / 'checkpoints'} to "
            "train from the first step again, or choose another run.name. Nothing was changed."
        )
    return None


def set_aside(folder: Path) -> Path:
    """Renames a damaged folder to `NAME.damaged`; an older one under that name goes."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    return aside


def write_sealed(target: Path, fill: Callable[[Path], None], aside: Path | None = None) -> None:
    """The folder `target` with what `fill(folder)` writes and checksums of it, whole or not at all. aside: as in
    `files.write_folder`; what is in it is sealed too."""

    def fill_and_seal(folder: Path) -> None:
        fill(folder)
        sums = {name: sha256(folder / name) for name in _files(folder)}
        (folder / STATE / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")

    write_folder(target, fill_and_seal, aside)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None: nothing. Reads all of it."""
    path = folder / STATE / CHECKSUMS
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(sums, dict) or f"{STATE}/state.json" not in sums:
            return f"{STATE}/{CHECKSUMS} is not what was written"
        for name, expected in sums.items():
            if not is_inside(name):
                return f"{STATE}/{CHECKSUMS} names {name!r}, no file of the folder"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} does not fit its checksum"
    except (OSError, ValueError, RecursionError) as error:
        return f"{STATE}/{CHECKSUMS}: {error}"
    return None


def written_weights(folder: Path) -> dict[str, str] | None:
    """SHA-256 of each file of weights as it was when the folder was sealed, by its name; None where that is not on
    record."""
    try:
        sums = json.loads((folder / STATE / CHECKSUMS).read_text(encoding="utf-8"))
        return {name: found for name, found in sums.items() if name.endswith(".safetensors") and "/" not in name}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def prune(run: Path, keep: int, keep_every: int = 0) -> None:
    """Removes all but the `keep` newest checkpoints and those at multiples of `keep_every` steps (0: none), and what
    crashed processes left half-written."""
    for path in checkpoints(run)[:-keep]:
        if keep_every and _step(path) % keep_every == 0:
            continue
        # Renamed first: a removal that is cut short leaves no torn folder under a checkpoint's name. Not to `.old-`,
        # which comes back.
        doomed = path.with_name(f".{path.name}.gone-{os.getpid()}")
        with suppress(OSError):  # what cannot be removed now (a reader on a network disk holds it) is tried next time
            os.rename(path, doomed)
            shutil.rmtree(doomed)
    remove_leftovers(run)


def remove_leftovers(run: Path) -> None:
    """Removes what a killed process left half-written or half-removed, and puts back what it had moved aside for a
    newer one that never came: `best`, or the checkpoint of a step whose validation was made up for. Only for the
    process that holds the run."""
    ours = [left for name in _WRITTEN for left in (*run.glob(f".{name}.partial-*"), *run.glob(f".{name}.old-*"))]
    for left in [*ours, *(run / "checkpoints").glob(".step-*")]:
        name, old, _ = left.name.removeprefix(".").rpartition(".old-")
        if old and not left.with_name(name).exists():
            os.rename(left, left.with_name(name))  # killed between the two renames of `files.put_in_place`
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
