"""The training room: from a recipe to a checkpoint folder.

    what                    where
    recipe                  sections.py (its fields), config.py (YAML, overrides, every problem at once)
    run                     loop.py, on setup.py (data, model, length) inside session.py (Accelerate, threads)
    one step                step.py, optimizer.py, muon.py, schedules.py, compiling.py
    beside the steps        ema.py (averaged weights), early_stopping.py, initial.py (weights to begin with)
    looking at the model    validation.py, samples.py, memory.py (what memory units do)
    stopping by itself      guard.py (loss spikes), diagnosis.py and probes.py (the first bad tensor), halt.py
    stopping and going on   checkpoints.py (folders), state.py (their contents), random_state.py, resume.py, signals.py,
                            lock.py
    telling                 journal.py, on metrics.py, trackers.py and progress.py (pace.py, output.py); report.py
    before it begins        beforehand.py (refusals that need no data); dryrun.py, on memory_estimate.py,
                            memory_trace.py, flops.py and peaks.py
    other trainers          callbacks.py (schedules for transformers.Trainer), lora.py (adapters with peft)

Nothing is imported here, so that reading a recipe does not load accelerate: public names are found when asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlm.training.callbacks import EpsilonCallback, ExplorationCallback
    from hybridlm.training.lora import lora_target_modules

__all__ = ["EpsilonCallback", "ExplorationCallback", "lora_target_modules"]

_HOMES = {"EpsilonCallback": "callbacks", "ExplorationCallback": "callbacks", "lora_target_modules": "lora"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
