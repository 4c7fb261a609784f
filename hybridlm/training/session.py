"""The process's surroundings of a run: Accelerate, CPU threads, determinism, kept memory; put back afterwards.

Accelerate keeps its state for the life of the process and refuses another precision later. A run that found none
leaves none, so that several runs, each with its own settings, can follow one another in one process.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import accelerate
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from hybridlm.allocator import kept_memory
from hybridlm.errors import UserError, install_command
from hybridlm.training.launching import check_launch
from hybridlm.training.muon import refuse_sharded_muon
from hybridlm.training.output import LastingOutput
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.sharding import refuse_unshardable

T = TypeVar("T")

_SUPPORTED = {
    DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}  # fmt: skip


class Accelerator(accelerate.Accelerator):
    """Accelerate's, whose `print` cannot stop a run either: what is said before its record and progress are there."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        super().print(*args, **{"file": LastingOutput(sys.stdout), "flush": True} | kwargs)


@contextmanager
def accelerator_session(config: PretrainConfig) -> Iterator[Accelerator]:
    """An Accelerator for `config`, one a process. Raises UserError for what this machine cannot do, and for a launch
    that did not do what it was asked for."""
    check_launch()
    check_trackers(config.logging.trackers)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    found_state = bool(AcceleratorState._shared_state)
    accelerator, memory = None, ExitStack()
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for; read when it starts
        torch.use_deterministic_algorithms(True)
    try:
        accelerator = _accelerator(config)
        if accelerator.device.type == "cpu":
            torch.set_num_threads(cpu_threads())
            memory.enter_context(kept_memory())
        yield accelerator
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        if accelerator is not None and not found_state:
            accelerator.free_memory()
            accelerator.end_training()
        global _patient
        _patient = None
        if not found_state:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        memory.close()  # last: it hands back what the lines above freed


def on_main(accelerator: accelerate.Accelerator, action: Callable[[], T]) -> T:
    """Runs `action` on the main process; every process returns its result, or raises its UserError."""
    answer: list[Any] = [None, None]
    raised: Exception | None = None
    meet(accelerator)
    if accelerator.is_main_process:
        try:
            answer[0] = action()
        except Exception as error:  # whatever it is: the others must not wait for ever
            raised = error
            answer[1] = error if isinstance(error, UserError) else UserError(f"The main process failed: {error!r}")
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(answer, src=0, group=patient_group())
    if raised is not None:
        raise raised
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def on_every(accelerator: accelerate.Accelerator, action: Callable[[], T]) -> T:
    """Runs `action`, which talks to nobody, on every process; returns its own result, or raises on all of them the
    UserError of the first that failed."""
    meet(accelerator)
    answer, raised, told = None, None, None
    try:
        answer = action()
    except Exception as error:  # whatever it is: the others must not wait for ever
        raised = error
        told = error if isinstance(error, UserError) else UserError(f"Process {accelerator.process_index}: {error!r}")
    everyone = [told]
    if accelerator.num_processes > 1:
        everyone = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(everyone, told, group=patient_group())
    first = next((error for error in everyone if error is not None), None)
    if first is not None:
        raise first from raised
    return answer  # pyright: ignore[reportReturnType]


def meet(accelerator: accelerate.Accelerator) -> None:
    """All processes come here within `parallel.timeout`, before they wait for one another with patience: one that hangs
    is found, and named, now."""
    if accelerator.num_processes > 1:
        handler = accelerator.init_handler
        torch.distributed.monitored_barrier(patient_group(), None if handler is None else handler.timeout)


_patient: Any = None


def patient_group() -> Any:
    """A group in which the others may wait for hours while the main process prepares data or writes a checkpoint.

    Where the main process ends, their connections close and they end at once. Where it hangs in such work (a network
    file system that does not answer), they wait for seven days: from outside, hanging and a long preparation look the
    same. The default group has `parallel.timeout`, which finds a process that hangs in a step. Every process makes this
    one at once.
    """
    global _patient
    if _patient is None:
        _patient = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    return _patient


def cpu_threads() -> int:
    """Threads for this process: its share of the cores; OMP_NUM_THREADS where no launcher is at work.

    Under torchrun and `accelerate launch` the variable says nothing: both set it to 1 by themselves.
    """
    launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if not launched and asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _accelerator(config: PretrainConfig) -> Accelerator:
    asked = int(os.environ.get("WORLD_SIZE", 1))
    try:
        accelerator = Accelerator(
            mixed_precision=config.training.mixed_precision,
            # Without it, Accelerate makes of torchrun's processes on a machine without a GPU as many separate runs.
            cpu=asked > 1 and not torch.accelerator.is_available(),
            project_dir=config.run.path,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_timeout(config))],
        )
    except ValueError as error:
        raise UserError(_precision(config, str(error))) from None
    if accelerator.num_processes != asked:
        raise UserError(
            f"The launcher started {asked} processes, but Accelerate joined {accelerator.num_processes} of them to one "
            "run. Launch one process, or use torchrun on CPUs or CUDA GPUs."
        )
    if config.training.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would go on in fp32
        raise UserError(_precision(config, "fp16 needs a GPU."))
    refuse_sharded_muon(config.optimizer.kind, accelerator.distributed_type)
    refuse_unshardable(config, accelerator.num_processes)
    if accelerator.distributed_type not in _SUPPORTED:
        kind = accelerator.distributed_type.value
        advice = f"Launch it without {kind}"
        if accelerator.distributed_type == DistributedType.FSDP:
            advice = (
                "To share weights, gradients and optimizer state out, give the recipe parallel.kind=fsdp and launch it "
                "with torchrun, or with accelerate launch --multi_gpu, without --use_fsdp"
            )
        raise UserError(f"The launcher asks for {kind}, which pretraining does not take from there. {advice}.")
    return accelerator


def _timeout(config: PretrainConfig) -> timedelta:
    # Accelerate leaves out what equals its own default, ten minutes, which is not gloo's.
    return timedelta(minutes=config.parallel.timeout) + timedelta.resolution


def _precision(config: PretrainConfig, reason: str) -> str:
    given = config.training.mixed_precision
    return (
        f"training.mixed_precision={given!r} does not work here: {reason} "
        "Use 'no' (any device) or 'bf16' (CPU, recent GPUs)."
    )


def check_trackers(trackers: list[Any]) -> None:
    """Raises UserError for trackers that are not installed."""
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()} if trackers else set()
    missing = [name for name in trackers if name not in available]
    if missing:
        raise UserError(
            f"logging.trackers names {', '.join(missing)}, which is not installed. Run {install_command('track')}, or "
            "leave it out: metrics.jsonl is written in any case."
        )
