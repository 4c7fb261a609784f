"""What a checkpoint holds beside the model, and how it is written and read back.

Tensors are read with `weights_only=True`: a checkpoint cannot run code. Only torch's random numbers are saved, as
nothing else in the loop draws any (the order of the data is a pure function of seed and step).

Where the weights are dealt out over the processes, they are gathered on the main process, which writes the model, and
each process writes its own part of the optimizer's state and of the averaged weights (`sharded_state`), into the same
folder aside: it gets its name once all have written, or not at all. All processes must see that folder.
"""

import errno
import json
import math
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
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging

from hybridlm.errors import UserError
from hybridlm.files import folder_aside
from hybridlm.training.carrying import CarriedStates
from hybridlm.training.checkpoints import STATE, checkpoint_path, prune, write_sealed
from hybridlm.training.ema import WeightAverage
from hybridlm.training.random_state import RandomState
from hybridlm.training.sections import CheckpointConfig
from hybridlm.training.session import on_every, on_main, patient_group
from hybridlm.training.sharded_state import missing_parts, read_names, read_parts, write_parts
from hybridlm.training.sharding import gathered, is_sharded, like

SHARDED, CARRIED = "sharded", "carried.safetensors"


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
    """epsilon of the next step; None where there is no `bmru`. For the reader: the schedule gives it again."""
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
    exploration: float | None = None
    """The same of the noise of `nfsm` layers."""
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
    (folder / STATE).mkdir(exist_ok=True)
    (folder / STATE / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


class SaveError(UserError):
    """A folder could not be written: the disk is full, or the run folder became read-only. What was there before is
    untouched. remedy: what helps, as an order without its full stop."""

    remedy = "put that right"


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises inside into a SaveError about `target`."""
    try:
        yield
    except Exception as error:
        refused = _disk_reason(error)
        if refused is None:
            raise
        number, reason = refused
        if number in _FULL:
            room = next(folder for folder in target.parents if folder.exists())
            reason += f"; {shutil.disk_usage(room).free / 2**20:,.0f} MiB are free"
        elif isinstance(error, OSError) and error.filename is not None:
            reason += f": {error.filename}"
        told = SaveError(f"{target} could not be written ({reason}). Nothing was lost or left half-written.")
        if number in _FULL:
            told.remedy = "make room"
        elif number in _REFUSED:
            told.remedy = f"make {target.parent} a folder that can be written"
        raise told from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


def _disk_reason(error: Exception) -> tuple[int | None, str] | None:
    """What the disk refused, as errno and in words; None where the error is another. Each library has its own way to
    say it."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    # safetensors, tokenizers: Rust's words
    said = re.search(r"(?:I/O error: |^)(.*) \(os error (\d+)\)", str(error))
    return (int(said[2]), said[1]) if said is not None else None


def save_checkpoint(
    run: Path,
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    tokenizer: Any,
    state: TrainingState,
    average: WeightAverage | None,
    carried: CarriedStates | None,
    choice: CheckpointConfig,
    sync: Callable[[], None],
) -> Path:
    """Called by every process; the main one writes, but for parts that are others'. Returns the folder. Older
    checkpoints go once this one is whole.

    sync: puts on the disk what the checkpoint counts on. Raises SaveError on every process.
    """
    target = checkpoint_path(run, state.step)
    random_states = gather_object([RandomState(accelerator.device).state_dict()])
    rows = None if carried is None else carried.gathered(accelerator)
    plain = accelerator.unwrap_model(model)
    sharded, whole = is_sharded(plain), gathered(plain, accelerator.is_main_process)
    aside = _write_sharded(target, accelerator, _tensors(plain, optimizer, average)) if sharded else None

    def fill(folder: Path) -> None:
        sync()
        save_model(folder, whole, tokenizer, state)
        _store(random_states, folder / STATE / "rng.pt")
        if rows is not None:
            save_file(rows, folder / STATE / CARRIED)
        if sharded:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        _store({"optimizer": optimizer.state_dict(), "scaler": scaler}, folder / STATE / "optimizer.pt")
        if average is not None:
            _store(average.state_dict(), folder / STATE / "ema.pt")

    def write() -> None:
        with saving(target):
            write_sealed(target, fill, aside)
            prune(run, choice.keep, choice.keep_every)

    on_main(accelerator, write)
    return target


def _tensors(model: Any, optimizer: Any, average: WeightAverage | None) -> dict[str, torch.Tensor]:
    """What is written in parts: name -> tensor, this process's part of it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        f"optimizer.{names[parameter]}.{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    averaged = average.tensors() if average is not None else {}
    return found | {f"average.{name}": tensor for name, tensor in averaged.items()}


def _write_sharded(target: Path, accelerator: Accelerator, tensors: dict[str, torch.Tensor]) -> Path:
    """The folder that becomes `target`, with the parts of all processes in it. Raises SaveError on every process; the
    folder is gone then."""

    def begin() -> Path:
        with saving(target):
            return folder_aside(target)

    def check() -> None:
        with saving(target):
            if failure is not None:
                raise failure
        missing = missing_parts(parts)
        if missing:
            raise SaveError(
                f"{target} could not be written: the main process does not see {', '.join(missing[:3])}, which other "
                "processes wrote. Choose a run.folder on a disk that all of them share."
            )

    aside = on_main(accelerator, begin)
    parts = aside / STATE / SHARDED
    failure = write_parts(parts, tensors, patient_group())
    try:
        on_main(accelerator, check)
    except UserError:
        on_main(accelerator, lambda: shutil.rmtree(aside, ignore_errors=True))
        raise
    return aside


def read_state(folder: Path) -> TrainingState:
    """`state.json` of a checkpoint. Raises UserError if it cannot be read."""
    path = folder / STATE / "state.json"
    try:
        state = TrainingState(**json.loads(path.read_text(encoding="utf-8")))
        _check_kinds(state)
        return state
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). {_ADVICE}") from None


def _check_kinds(state: TrainingState) -> None:
    """Raises TypeError for a value that no run writes."""
    kinds: dict[str, tuple[type, ...]] = {"seconds": (int, float), "data_fingerprint": (str,), "settings": (dict,)}
    kinds |= dict.fromkeys(("step", "total_steps", "tokens", "processes"), (int,))
    kinds |= dict.fromkeys(("epsilon", "exploration"), (int, float, type(None)))
    kinds |= {"stopped_early": (bool,), "early_stopping": (dict, type(None))}
    for name, allowed in kinds.items():
        value = getattr(state, name)
        if type(value) not in allowed or (type(value) is float and not math.isfinite(value)):
            raise TypeError(f"{name} is {value!r:.80}")


def load_optimizer(folder: Path, accelerator: Accelerator, model: Any, optimizer: Any) -> None:
    """Restores the optimizer and, in fp16, the loss scaler, whatever number of processes wrote them. model: unwrapped.
    Raises UserError, on every process, if a file is damaged."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in model.named_parameters()}

    def load() -> None:
        if (folder / STATE / SHARDED).is_dir():
            state = _read_optimizer(folder / STATE / SHARDED, {names[one]: one for one in parameters})
            numbered = {number: state[names[one]] for number, one in enumerate(parameters) if names[one] in state}
            # The groups' settings are the recipe's, which must not change on resume.
            optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
            return
        saved = _load(folder / STATE / "optimizer.pt")
        for number, entries in saved["optimizer"]["state"].items():
            one = parameters[number]
            for key, value in entries.items():
                entries[key] = like(value, one) if value.shape == one.shape else value
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])

    on_every(accelerator, load)


def _read_optimizer(folder: Path, parameters: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The state of each parameter, in parts where the parameter is."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    wanted = {}
    with _reading(folder):
        for name, (size, dtype) in read_names(folder).items():
            kind, _, rest = name.partition(".")
            owner, _, key = rest.rpartition(".")
            if kind != "optimizer":
                continue
            one = parameters[owner]
            into = torch.zeros_like(one, dtype=dtype) if size == one.shape else torch.zeros(size, dtype=dtype)
            wanted[name] = state.setdefault(owner, {})[key] = into
        read_parts(folder, wanted)
    return state


def load_average(folder: Path, accelerator: Accelerator, average: WeightAverage) -> None:
    """Restores the averaged weights, whatever number of processes wrote them. Raises UserError, on every process, if a
    file is damaged."""

    def load() -> None:
        if (folder / STATE / SHARDED).is_dir():
            with _reading(folder / STATE / SHARDED):
                read_parts(
                    folder / STATE / SHARDED, {f"average.{name}": tensor for name, tensor in average.tensors().items()}
                )
            return
        now, saved = average.state_dict(), _load(folder / STATE / "ema.pt")
        average.load_state_dict({name: like(tensor, now[name]) for name, tensor in saved.items()})

    on_every(accelerator, load)


def load_random_state(folder: Path, accelerator: Accelerator) -> bool:
    """Restores this process's random state; False where another number of processes wrote the checkpoint."""
    states = _load(folder / STATE / "rng.pt")
    if len(states) != accelerator.num_processes:
        return False
    RandomState.from_state_dict(states[accelerator.process_index], accelerator.device).restore()
    return True


def load_carried(
    folder: Path, accelerator: Accelerator, carried: CarriedStates, batch_size: int, place: int, places: int
) -> None:
    """Restores the states that the rows of this process go on from: those of place `place` of `places` that read rows,
    whatever number of them there was before. Raises UserError, on every process, if the file is damaged or missing."""

    def load() -> None:
        with _reading(folder / STATE / CARRIED):
            carried.load(folder / STATE / CARRIED, accelerator.device, batch_size, place, places)

    on_every(accelerator, load)


def _store(state: Any, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch.save tells nothing of what a disk refused
        torch.save(state, file)


def _load(path: Path) -> Any:
    with _reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what reading a damaged file raises inside into a UserError about `path`."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}). {_ADVICE}") from None


_DAMAGED = (
    OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, SafetensorError, pickle.UnpicklingError
)  # fmt: skip
_ADVICE = "Remove this checkpoint folder to go on from an older one, or choose another run.name to start anew."
