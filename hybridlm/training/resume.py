"""Whether a run starts, goes on or is over.

A run goes on only under the settings that decide its numbers (`FROZEN`). How it is watched, saved, validated or cut
into micro-batches may change between sessions.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.files import file_in_the_way, try_folder
from hybridlm.training.checkpoints import damage, newest_valid, remove_leftovers, set_aside
from hybridlm.training.config import load_config, settings
from hybridlm.training.kept_record import keep_record
from hybridlm.training.lock import is_used, run_lock
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import on_main
from hybridlm.training.state import TrainingState, read_state

FROZEN = (
    "model",
    "data.sequence_length",
    "data.carry_state",
    "data.carry_restart",
    "training.steps",
    "training.tokens",
    "training.epochs",
    "training.batch_size",
    "training.mixed_precision",
    "training.z_loss",
    "training.seed",
    "training.ema_decay",
    "training.init_from",
    "optimizer",
    "schedule",
    "epsilon",
    "exploration",
    "write_penalty",
)


@dataclass
class Plan:
    """What to do with the run folder."""

    kind: Literal["fresh", "resume", "finished"]
    folder: Path | None = None
    """The checkpoint to go on from, or the final model of a finished run."""
    state: TrainingState | None = None
    """The state saved there."""


def frozen_settings(config: PretrainConfig) -> dict[str, Any]:
    """The settings that must not change on resume: dotted name -> plain value."""
    values = settings(config)
    frozen: dict[str, Any] = {}
    for name in FROZEN:
        section, _, entry = name.partition(".")
        value = values[section][entry] if entry else values[section]
        frozen |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return frozen


def check_run_folder(run: Path) -> None:
    """Raises UserError where the run folder cannot be made or written into, or cannot hold checkpoints; leaves nothing
    behind."""
    try:
        blocked = file_in_the_way(run)
        if blocked is not None:
            raise UserError(
                f"The run folder {run} cannot be made: {blocked} is a file. Choose another run.folder or run.name."
            )
        inside = run / "checkpoints"
        if (inside.exists() or inside.is_symlink()) and not inside.is_dir():
            what = f"a link to {os.readlink(inside)}, which is not there" if inside.is_symlink() else "no folder"
            raise UserError(
                f"{inside} is {what}. Bring the folder with the checkpoints back (is its disk mounted?), or choose "
                "another run.name. Nothing was changed."
            )
        try_folder(run)
    except OSError as error:
        raise unwritable(run, error) from error


@contextmanager
def held_folder(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """The main process holds the run folder inside, cleared of what a killed one left half-written: all that looks for
    its checkpoints, the data included, finds them under their names. Raises UserError on every process."""
    with ExitStack() as held:

        def hold() -> None:
            try:
                held.enter_context(run_lock(run))
                remove_leftovers(run)
            except OSError as error:
                raise unwritable(run, error) from error

        on_main(accelerator, hold)
        yield


def unwritable(run: Path, error: OSError) -> UserError:
    return UserError(f"run folder {run}: it cannot be written ({error.strerror or error}). Choose another run.folder.")


def plan_run(config: PretrainConfig, data_fingerprint: str, log: Callable[[str], None] = print) -> Plan:
    """Looks at the run folder, which this process holds. Raises UserError that says what to change."""
    run = config.run.path
    if config.run.resume == "never" and is_used(run):
        raise UserError(
            f"The run folder {run} is in use and run.resume=never. Choose another run.name, remove the folder, or "
            "set run.resume=auto to go on."
        )
    final = run / "final"
    if final.is_dir():
        fault = damage(final)
        if fault is None:
            state = read_state(final)
            refuse_changes(
                config, state, data_fingerprint, f"The run in {run} is finished, and was made with other settings"
            )
            return Plan("finished", final, state)
        log(f"{final} is damaged ({fault}). It is made again from the newest checkpoint.")
    found = newest_valid(run, log)
    if found is not None:
        state = read_state(found)
        refuse_changes(
            config,
            state,
            data_fingerprint,
            f"The run in {run} cannot go on from step {state.step}: its settings were others",
        )
        if final.is_dir():
            set_aside(final)
        _know_best(run, state, log)
        return Plan("resume", found, state)
    if final.is_dir():
        raise UserError(
            f"{final} is damaged, and there is no checkpoint to make it again from. Bring either back from a copy, or "
            "choose another run.name."
        )
    if config.run.resume == "must":
        raise UserError(
            f"There is no checkpoint in {run} and run.resume=must. Check run.folder and run.name, or set "
            "run.resume=auto to start."
        )
    try:
        keep_record(run, log)
    except OSError as error:
        raise unwritable(run, error) from error
    return Plan("fresh")


def _know_best(run: Path, state: TrainingState, log: Callable[[str], None]) -> None:
    """Makes `state` forget its best model where `best` holds another one, such as that of a step which is taken again,
    or none: the next validation then writes it anew. When the run stops getting better is not touched by that. Where
    the model is that of the checkpoint itself, whose validation comes again, it is the same that is written."""
    folder, seen = run / "best", state.early_stopping or {}
    known, there = seen.get("best_step"), None
    if folder.is_dir() and damage(folder) is None:
        with suppress(UserError):  # of another version
            there = read_state(folder).step
    if there == known:
        return
    if there is None:
        log(f"{folder}, the model of step {known:,}, is not there or damaged. The next validation writes it anew.")
    elif there != state.step or not state.validation_due:
        log(
            f"{folder} is the model of step {there:,}, which the checkpoint of step {state.step:,} does not know. The "
            "next validation writes its own in its place: copy the folder now if you want to keep it."
        )
    if seen:
        state.early_stopping = seen | {"best": None, "best_step": None}


def _unset_settings() -> dict[str, Any]:
    """What a checkpoint of a version that had fewer settings was made with: the defaults of those it did not know."""
    return frozen_settings(load_config(None, ["data.folder=unknown", "training.steps=1"]))


def refuse_changes(config: PretrainConfig, state: TrainingState, data_fingerprint: str, what: str) -> None:
    given, kept = frozen_settings(config), _unset_settings() | state.settings
    changes = [
        f"{name}: was {kept.get(name, 'not set')}, is now {given.get(name, 'not set')}"
        for name in dict.fromkeys([*given, *kept])
        if given.get(name, "not set") != kept.get(name, "not set")
    ]
    if state.data_fingerprint != data_fingerprint:
        before, now = state.data_fingerprint[:16], data_fingerprint[:16]
        changes.append(
            f"the data: its fingerprint was {before}, is now {now} (the weights of its sources are part of it)"
        )
    if changes:
        listing = "\n".join(f"  - {change}" for change in changes)
        advice = (
            "Give the old settings back, choose another run.name (training.init_from begins it with these weights), or "
            "remove the folder."
        )
        raise OtherSettingsError(f"{what}.\n{listing}\n", advice)
