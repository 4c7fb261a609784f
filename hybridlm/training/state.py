"""What a checkpoint holds beside the model, and how it is written and read back.

Tensors are read with `weights_only=True`: a checkpoint cannot run code. Only torch's random numbers are saved, as
nothing else in the loop draws any (the order of the data is a pure function of seed and step).
"""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import STATE, checkpoint_path, prune, write_sealed
from hybridlm.training.ema import WeightAverage
from hybridlm.training.random_state import RandomState
from hybridlm.training.sections import CheckpointConfig
from hybridlm.training.session import on_main


@dataclass
class TrainingState:
    """`state.json`."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps of the whole run."""
    tokens: int
    """Tokens read."""
    seconds: float
    """Wall time of the run so far, over all its sessions."""
    epsilon: float | None
    """epsilon of the next step; None where nothing is annealed. For the reader: the schedule gives it again."""
    data_fingerprint: str
    """Fingerprint of the data folder."""
    settings: dict[str, Any]
    """The settings that must not change on resume, by dotted name."""
    processes: int
    """Processes that wrote the checkpoint."""
    early_stopping: dict[str, Any] | None = None
    """What the validations so far said (`early_stopping.Seen`)."""
    stopped_early: bool = False
    """Of a final model: whether it ended before `total_steps`, since validation had stopped getting better."""
    overflows: int = 0
    """fp16: steps in a row that were left out."""
    validation_due: bool = False
    """A signal came while the model was validated: that is done again first."""
    losses: list[float] = field(default_factory=list)
    """The last losses, oldest first, that the spike guard compares the next one with; empty where it is off."""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside: a model is read and written in moments, and the run has a bar of
    its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(folder: Path, model: Any, tokenizer: Any, state: TrainingState) -> None:
    """A `from_pretrained` folder with `state` in it. model: unwrapped."""
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / STATE).mkdir()
    (folder / STATE / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


class SaveError(UserError):
    """A folder could not be written: the disk is full, or the run folder became read-only. What was there before is
    untouched."""


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises inside into a SaveError about `target`."""
    try:
        yield
    except Exception as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        room = next(folder for folder in target.parents if folder.exists())
        raise SaveError(
            f"{target} could not be written ({reason}; {shutil.disk_usage(room).free / 2**20:,.0f} MiB are free). "
            "Nothing was lost or left half-written."
        ) from error


def _disk_reason(error: Exception) -> str | None:
    """What the disk refused; None where the error is another. Each library has its own way to say it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = re.search(r"(?:I/O error: |^)(.*) \(os error \d+\)", str(error))  # safetensors, tokenizers: Rust's words
    return said[1] if said is not None else None


def save_checkpoint(
    run: Path,
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    tokenizer: Any,
    state: TrainingState,
    average: WeightAverage | None,
    choice: CheckpointConfig,
    sync: Callable[[], None],
) -> Path:
    """Called by every process; the main one writes. Returns the folder. Older checkpoints go once this one is whole.

    sync: puts on the disk what the checkpoint counts on. Raises SaveError on every process.
    """
    target = checkpoint_path(run, state.step)
    random_states = gather_object([RandomState(accelerator.device).state_dict()])

    def fill(folder: Path) -> None:
        save_model(folder, accelerator.unwrap_model(model), tokenizer, state)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        _store({"optimizer": optimizer.state_dict(), "scaler": scaler}, folder / STATE / "optimizer.pt")
        _store(random_states, folder / STATE / "rng.pt")
        if average is not None:
            _store(average.state_dict(), folder / STATE / "ema.pt")

    def write() -> None:
        with saving(target):
            sync()
            write_sealed(target, fill)
            prune(run, choice.keep, choice.keep_every)

    on_main(accelerator, write)
    return target


def read_state(folder: Path) -> TrainingState:
    """`state.json` of a checkpoint. Raises UserError if it cannot be read."""
    path = folder / STATE / "state.json"
    try:
        return TrainingState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}). {_ADVICE}") from None


def load_optimizer(folder: Path, accelerator: Accelerator, optimizer: Any) -> None:
    """Restores the optimizer and, in fp16, the loss scaler. Raises UserError if the file is damaged."""
    saved = _load(folder / STATE / "optimizer.pt")
    optimizer.load_state_dict(saved["optimizer"])
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])


def load_average(folder: Path, average: WeightAverage) -> None:
    """Restores the averaged weights. Raises UserError if the file is damaged."""
    average.load_state_dict(_load(folder / STATE / "ema.pt"))


def load_random_state(folder: Path, accelerator: Accelerator) -> bool:
    """Restores this process's random state; False where another number of processes wrote the checkpoint."""
    states = _load(folder / STATE / "rng.pt")
    if len(states) != accelerator.num_processes:
        return False
    RandomState.from_state_dict(states[accelerator.process_index], accelerator.device).restore()
    return True


def _store(state: Any, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch.save tells nothing of what a disk refused
        torch.save(state, file)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}). {_ADVICE}") from None


_ADVICE = "Remove this checkpoint folder to go on from an older one, or choose another run.name to start anew."
