"""What a finished run left, and what it says when it is started again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlm.training.metrics import last_validation
from hybridlm.training.resume import Plan


@dataclass
class RunResult:
    """Where a finished run left its results."""

    run_folder: Path
    """RUN."""
    checkpoint: Path
    """The final `from_pretrained` folder."""
    metrics: Path
    """metrics.jsonl."""
    validation: dict[str, Any]
    """The last validation row (metrics.py): bits_per_byte, loss, ... Empty without a validation split."""


def result_of(run: Path) -> RunResult:
    """That of the finished run in `run`. Raises UserError where its record is damaged."""
    metrics = run / "metrics.jsonl"
    return RunResult(run, run / "final", metrics, last_validation(metrics))


def finished_text(plan: Plan) -> str:
    """What a run says that was started although it is finished."""
    early, state = "", plan.state
    if state is not None and state.stopped_early:
        early = (
            f" It stopped early, after step {state.step:,} of {state.total_steps:,}; for more steps, begin another run "
            "from its model, with training.init_from under another run.name."
        )
    return f"This run is finished; nothing to do.{early} Its model is in {plan.folder}"
