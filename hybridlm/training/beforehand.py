"""What a run refuses before any data is read or prepared: a corpus may take hours, and a mistyped name is known now.

A dry run asks for more, since it stops there: what a run finds out on its way, as far as it can be told without data.
"""

from pathlib import Path

from hybridlm.data.prepare import source_weights
from hybridlm.errors import UserError
from hybridlm.files import expanded
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.initial import check_initial, is_local
from hybridlm.training.known_data import as_begun, run_began_with
from hybridlm.training.lock import is_used
from hybridlm.training.resume import refuse_changes
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.state import TrainingState, read_state


def has_begun(run: Path) -> bool:
    """Whether there is a checkpoint or a final model to go on from, damaged or not."""
    return (run / "final").is_dir() or bool(checkpoints(run))


def refuse_start(config: PretrainConfig) -> None:
    """Raises UserError where run.resume forbids what the run folder asks for, and for a new run whose
    training.init_from is not there or does not fit. Looks a name on the Hub up."""
    check_resume(config)
    if config.training.init_from is not None and not has_begun(config.run.path):
        check_initial(config.training.init_from, config.model)


def check_resume(config: PretrainConfig) -> None:
    """Raises UserError where run.resume forbids what the run folder asks for."""
    run = config.run.path
    if config.run.resume == "never" and is_used(run):
        raise UserError(
            f"The run folder {run} is in use and run.resume=never. Choose another run.name, remove the folder, or "
            "set run.resume=auto to go on."
        )
    if config.run.resume == "must" and not has_begun(run):
        raise UserError(
            f"There is no checkpoint in {run} and run.resume=must. Check run.folder and run.name, or set "
            "run.resume=auto to start."
        )


def run_state(config: PretrainConfig, data_fingerprint: str | None) -> str:
    """What is in the run folder and would be done with it, in a few words. data_fingerprint: None where it is not
    known. Raises UserError where `pretrain` would refuse to go on; checksums are not looked at."""
    check_resume(config)
    run = config.run.path
    if not has_begun(run):
        return "new"
    folder, state = _newest_readable(run)
    finished = folder.name == "final"
    what = (
        f"The run in {run} is finished, and was made with other settings"
        if finished
        else f"The run in {run} cannot go on from step {state.step}: its settings were others"
    )
    refuse_changes(config, state, data_fingerprint or state.data_fingerprint, what)
    return "holds a finished run" if finished else f"holds a run; it would go on from {folder.name}"


def _newest_readable(run: Path) -> tuple[Path, TrainingState]:
    fault = None
    for folder in (run / "final", *reversed(checkpoints(run))):
        try:
            if folder.is_dir():
                return folder, read_state(folder)
        except UserError as error:
            fault = fault or error
    assert fault is not None, "one of them is there"
    raise fault


def reads_sources(config: PretrainConfig) -> bool:
    """Whether `pretrain` would look at the sources of data.prepare: always but for a run that goes on with the data
    that it began with (known_data.py)."""
    section = config.data.prepare
    if section is None:
        return False
    output = expanded(section.output)
    return not (run_began_with(config.run.path, output, source_weights(section)) and as_begun(config))


def initial_weights(config: PretrainConfig) -> str:
    """What a new run would begin with, in a few words; the Hub is not asked. Raises UserError for a folder that is not
    there or does not fit."""
    source = config.training.init_from
    if has_begun(config.run.path):
        return "those of the run"
    if source is None:
        return f"random, from training.seed={config.training.seed}"
    if not is_local(source):
        return f"from {source}: unknown, there is no such folder here and the Hub is not asked"
    check_initial(source, config.model)
    return f"from {source}"
