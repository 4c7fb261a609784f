"""How a run that stops by itself says so: a message with the cause and what to do, and RUN/diverged.json.

diverged.json: kind (parameter, forward, loss, backward, spike, unknown, validation), step (the one that was not taken,
from 1; of a validation, the one behind which it stood), total_steps, tensor, process, micro_batch (both from 0), seen
(dtype, values, nan, infinite, low, high of what is bad and of what it came from), message, checkpoint. It tells about
the last session alone: the next one removes it.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

from hybridlm.files import replace_file
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.diagnosis import FailedStep, Finding, find_cause
from hybridlm.training.guard import DivergedError, OverflowsError, SpikeError
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import on_main

REPORT = "diverged.json"


def halted(
    error: DivergedError,
    accelerator: Accelerator,
    model: Any,
    failed: FailedStep,
    config: PretrainConfig,
    step: int,
    total: int,
) -> DivergedError:
    """The error to raise instead of `error`: the same on every process, each of which calls this. The report is on the
    disk then. model: unwrapped; step: the one that was not taken, from 1."""
    spike = isinstance(error, SpikeError)
    finding = None if spike else find_cause(accelerator, model, failed)
    kind = "spike" if spike else "unknown" if finding is None else finding.kind
    checkpoint = on_main(accelerator, lambda: _checkpoint(config.run.path, kind))
    where = "There is no checkpoint yet." if checkpoint is None else f"{_CHECKPOINT.get(kind, _NEWEST)}: {checkpoint}"
    said = str(error) if spike else f"{_cause(error, finding, failed)} {_advice(kind, config)}"
    message = f"Stopped at step {step} of {total}, before the weights were changed. {said} {where}"
    if accelerator.is_main_process:
        values = {
            "kind": kind,
            "step": step,
            "total_steps": total,
            "tensor": "loss" if spike else finding and finding.tensor,
            "process": finding and finding.process,
            "micro_batch": finding and finding.micro_batch,
            "seen": finding and finding.seen,
            "message": message,
            "checkpoint": checkpoint and str(checkpoint),
        }
        _write(config.run.path, values)
    return (SpikeError if spike else DivergedError)(message)


def halted_validation(
    accelerator: Accelerator, run: Path, step: int, total: int, name: str, value: float
) -> DivergedError:
    """The error to raise where `name` of a validation is not finite, on every process; the report is on the disk then.
    step: the last one that was taken."""
    newest = f"The newest checkpoint is {paths[-1]}." if (paths := checkpoints(run)) else ""
    message = (
        f"Stopped after step {step} of {total}: {name} of the validation is {value}. Use "
        f"training.mixed_precision=bf16 or no, or a lower optimizer.lr under another run.name. {newest}"
    )
    if accelerator.is_main_process:
        values = {"kind": "validation", "step": step, "total_steps": total, "tensor": name}
        none = dict.fromkeys(("process", "micro_batch", "seen"))
        _write(run, {**values, **none, "message": message, "checkpoint": str(paths[-1]) if paths else None})
    return DivergedError(message)


def _write(run: Path, values: dict[str, Any]) -> None:
    with suppress(OSError):  # the error is raised in any case
        replace_file(run / REPORT, json.dumps(values, indent=2) + "\n")


def forget_halt(run: Path) -> None:
    """A new session begins."""
    (run / REPORT).unlink(missing_ok=True)


_NEWEST = "The newest checkpoint of the run is untouched"
_CHECKPOINT = {"parameter": "The newest checkpoint whose weights are all finite (remove those behind it)"}


def _checkpoint(run: Path, kind: str) -> Path | None:
    found = list(reversed(checkpoints(run)))
    if kind == "parameter":
        return next((path for path in found if _finite(path)), None)
    return found[0] if found else None


def _finite(checkpoint: Path) -> bool:
    """Whether its weights are; a damaged one does not count."""
    try:
        files = [load_file(file) for file in checkpoint.glob("*.safetensors")]
    except (OSError, SafetensorError):
        return False
    return all(bool(tensor.isfinite().all()) for tensors in files for tensor in tensors.values())


def _cause(error: DivergedError, finding: Finding | None, failed: FailedStep) -> str:
    if finding is None:
        return (
            f"{error} The search did not find where it began: the step's micro-batches, run again one by one, were "
            "finite. Their sum overflows, or the device does not compute the same twice."
        )
    where = ""
    if finding.micro_batch is not None:
        where = f"; micro-batch {finding.micro_batch + 1} of {len(failed.batches)} on process {finding.process}"
    first = f"The first tensor that is not finite is {finding.text}{where}."
    return f"{error} {first}" if isinstance(error, OverflowsError) else first


def _advice(kind: str, config: PretrainConfig) -> str:
    if kind == "parameter":
        return "An earlier update or the checkpoint that was read left it so."
    precision = {"bf16": ", or use training.mixed_precision=no", "fp16": ", or use training.mixed_precision=bf16 or no"}
    return (
        "Lower optimizer.lr, lengthen the warm-up, lower optimizer.clip_norm"
        f"{precision.get(config.training.mixed_precision, '')}; a run keeps these settings, so give the changed ones "
        "another run.name."
    )
