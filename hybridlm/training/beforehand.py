"""What a run refuses before any data is read or prepared: a corpus may take hours, and a mistyped name is known now."""

from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.initial import check_initial
from hybridlm.training.lock import is_used
from hybridlm.training.sections import PretrainConfig


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
