"""What a checkpoint holds beside the model, and how it is written and read back.

Tensors are read with `weights_only=True`: a checkpoint cannot run code. Only torch's random numbers are saved, as
nothing else in the loop draws any (the order of the data is a pure function of seed and step).
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from hybridlm.errors import UserError
from hybridlm.files import write_folder
from hybridlm.training.checkpoints import STATE, checkpoint_path, prune


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


def save_checkpoint(
    run: Path, accelerator: Accelerator, model: Any, optimizer: Any, tokenizer: Any, state: TrainingState, keep: int
) -> Path:
    """Called by every process; the main one writes. Returns the folder. Older checkpoints go once this one is whole."""
    target = checkpoint_path(run, state.step)
    random_states = gather_object([_random_state(accelerator.device)])

    def fill(folder: Path) -> None:
        save_model(folder, accelerator.unwrap_model(model), tokenizer, state)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, folder / STATE / "optimizer.pt")
        torch.save(random_states, folder / STATE / "rng.pt")

    if accelerator.is_main_process:
        write_folder(target, fill)
        prune(run, keep)
    accelerator.wait_for_everyone()
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


def load_random_state(folder: Path, accelerator: Accelerator) -> bool:
    """Restores this process's random state; False where another number of processes wrote the checkpoint."""
    states = _load(folder / STATE / "rng.pt")
    if len(states) != accelerator.num_processes:
        return False
    state = states[accelerator.process_index]
    torch.set_rng_state(state["cpu"])
    if accelerator.device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], accelerator.device)
    return True


def _random_state(device: torch.device) -> dict[str, torch.Tensor | None]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}). {_ADVICE}") from None


_ADVICE = "Remove this checkpoint folder to go on from an older one, or choose another run.name to start anew."
