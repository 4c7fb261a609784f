"""A checkpoint beside a Transformer, against position: what is measured, and the result as JSON and as a table."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hybridlm.bench import positions
from hybridlm.bench.positions import LEAST, Options, Subject, tokens_of
from hybridlm.bench.timing import check_counts, free_memory, total_memory
from hybridlm.bench.transformer_peer import transformer_like
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import locate, quiet_transformers, read_config, torch_device, torch_dtype
from hybridlm.evaluation.report import write_json
from hybridlm.machine import machine

POSITIONS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
STEPS = 64
SECONDS = 300.0
SHARE = 0.5
"""Of the memory that is free: attention that grows copies a layer's keys and values at each step."""
CHECKPOINT, BUILT, PEER = "checkpoint", "transformer", "peer"

Progress = Callable[[str], None]


def check_positions(given: Sequence[int], steps: int) -> tuple[int, ...]:
    """The positions, each once and in order. Raises UserError below 1, and where two are so near to each other that the
    steps at one would reach the next."""
    if steps < LEAST:
        raise UserError(f"steps={steps}: must be at least {LEAST}, of which there is a median.")
    found = tuple(sorted(set(given)))
    if not found:
        raise UserError("positions: there is none. Give whole numbers with commas between them, as 1000,10000.")
    check_counts(positions=found[0])
    for earlier, later in pairwise(found):
        if later - earlier < tokens_of(steps):
            raise UserError(
                f"positions={earlier},{later}: they must be at least {tokens_of(steps)} apart, since {steps} steps are "
                "timed at each in two ways. Leave one out, or make fewer steps."
            )
    return found


def report(
    checkpoint: str | Path,
    out: str | Path,
    *,
    peer: str | Path | None = None,
    alone: bool = False,
    marks: Sequence[int] = POSITIONS,
    steps: int = STEPS,
    memory_limit: float | None = None,
    seconds: float = SECONDS,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measures, and writes what there is to `out` after every row; the record. Ctrl-C ends it with the rows that there
    are, and `finished` False.

    peer: a checkpoint to compare with; None: a Transformer of equal parameters is made. alone: nothing is compared.
    marks: positions. steps: timed at each, in each of two ways. memory_limit: GiB that a cache may take; None: half of
    what is free. seconds: of reading up to a position. Raises UserError for values out of range, models that cannot be
    loaded, and models without a cache.
    """
    found = check_positions(marks, steps)
    _check_amount("time_limit", seconds, "seconds")
    torch_dtype(dtype)
    place = torch_device(device)
    limit, words = _limit(memory_limit, place)
    options = Options(found, steps, limit, seconds, dtype, device)
    models, subjects = _models(checkpoint, peer, alone, options)
    entry = {
        "kind": "generation against position",
        "checkpoint": str(checkpoint),
        "machine": machine(place),
        "settings": {
            "positions": list(found), "steps": steps, "state_limit_bytes": limit, "state_limit": words,
            "seconds": seconds, "chunk": positions.CHUNK, "batch_size": 1, "peer": None if peer is None else str(peer),
        },
        "models": models,
        "rows": [],
        "finished": False,
    }  # fmt: skip
    try:
        for row in positions.measure(subjects, options, torch.get_num_threads()):
            if "facts" in row:
                models[row["model"]] |= row["facts"]
                continue
            entry["rows"].append(row)
            entry["finished"] = len(entry["rows"]) == len(found) * len(models)
            write_json(out, entry)
            progress(_progress(row))
    except KeyboardInterrupt:
        if not entry["rows"]:
            raise
        write_json(out, entry)
    return entry


def _check_amount(name: str, value: float, unit: str) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value:g}: must be above 0 {unit}, and finite.")


def _limit(gib: float | None, device: torch.device) -> tuple[int, str]:
    """Bytes that a cache may take, and where the number is from."""
    if gib is not None:
        _check_amount("memory_limit", gib, "GiB")
        return int(gib * 2**30), "as given"
    for kind, size in (("free now", free_memory(device)), ("there", total_memory(device))):
        if size is not None:
            return int(SHARE * size), f"{SHARE:.0%} of the {size / 2**30:.1f} GiB that are {kind}"
    raise UserError("memory_limit: how much memory is free is not known on this system. Give --memory-limit GIB.")


def _models(
    checkpoint: str | Path, peer: str | Path | None, alone: bool, options: Options
) -> tuple[dict[str, dict[str, Any]], list[Subject]]:
    """Name -> facts of the models, and the models as they are measured."""
    source = locate(checkpoint)
    config = read_config(source, f"checkpoint {checkpoint}")
    models = {CHECKPOINT: _facts(f"checkpoint {checkpoint}", config) | {"source": source, "weights": "saved"}}
    subjects = [Subject(CHECKPOINT, source, _most(config))]
    if alone:
        return models, subjects
    if peer is not None:
        other = locate(peer, "--peer")
        config = read_config(other, f"--peer {peer}")
        subjects.append(Subject(PEER, other, _most(config), "--peer"))
        models[PEER] = _facts(f"--peer {peer}", config) | {"source": other, "weights": "saved"}
        return models, subjects
    if config.model_type != "hybridlm":
        raise UserError(
            f"checkpoint {checkpoint}: its model_type is {config.model_type!r}; a Transformer of equal size is made "
            "for checkpoints of hybridlm. Give --peer PATH, or --no-peer."
        )
    last = options.positions[-1] + tokens_of(options.steps)
    built = transformer_like(config, models[CHECKPOINT]["parameters"], last)  # pyright: ignore[reportArgumentType]
    subjects.append(Subject(BUILT, built))
    models[BUILT] = _facts(BUILT, built) | {"source": None, "weights": "random"}
    return models, subjects


def _facts(given: str, config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says; no weight is made. Raises UserError, which begins with `given`, for what is no causal
    language model with a cache."""
    try:
        with quiet_transformers(), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{given}: {config.model_type!r} is no causal language model that can be made here "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    if not {"past_key_values", "cache_params"} & set(inspect.signature(model.forward).parameters):
        raise UserError(f"{given}: {type(model).__name__} takes no cache. {positions.NO_CACHE}")
    text: Any = config.get_text_config(decoder=True)
    return {
        "class": type(model).__name__,
        "pattern": getattr(config, "pattern", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": getattr(text, "num_hidden_layers", None),
        "hidden_size": getattr(text, "hidden_size", None),
        "vocab_size": text.vocab_size,
        "made_for": getattr(text, "max_position_embeddings", None),
    }


def _most(config: PreTrainedConfig) -> int | None:
    """Positions that a model has a table of; None where it goes on: RoPE is computed, and recurrences count nothing."""
    text: Any = config.get_text_config(decoder=True)
    if config.model_type == "hybridlm" or getattr(text, "rope_parameters", None):
        return None
    return getattr(text, "max_position_embeddings", None)


def _progress(row: dict[str, Any]) -> str:
    start = f"{row['model']} at {row['position']:,} tokens: "
    if "problem" in row:
        return start + row["problem"]
    return f"{start}{row['step_seconds'] * 1e3:.2f} ms a step, {row['state_bytes']:,} bytes of state"
