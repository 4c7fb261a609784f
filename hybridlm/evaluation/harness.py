"""Tasks of lm-evaluation-harness: a checkpoint measured with `lm_eval`, which comes with the extra `eval`.

    hybridlm evaluate CHECKPOINT --tasks arc_easy,hellaswag
    hybridlm evaluate CHECKPOINT --tasks mine --include-path my_tasks

lm_eval's own output (warnings about how it is called, progress bars where nobody watches, lines about bootstrapping)
is kept back; what it warns of besides is collected as `notes`, and prompts that lost their beginning are counted.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import DEFAULT_ROWS, facts_of
from hybridlm.evaluation.harness_model import harness_model
from hybridlm.evaluation.harness_tasks import find_tasks, listening, one_line
from hybridlm.evaluation.loading import load_checkpoint, locate
from hybridlm.evaluation.positions import check_positions
from hybridlm.evaluation.report import trained_length
from hybridlm.evaluation.weights import weights_digest

SEED = 1234
"""Of few-shot examples, sampling and bootstrapping; lm_eval's own default."""
BOOTSTRAPS = 1000
"""Resamplings for the standard error of metrics that have no closed form."""


def evaluate_checkpoint_tasks(
    checkpoint: str | Path,
    tasks: Sequence[str],
    *,
    context: int | None = None,
    batch_size: int | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """`evaluate_tasks` of a checkpoint; context None: as in `evaluate_checkpoint`. Raises UserError."""
    source = locate(checkpoint)
    check_numbers(context=context, batch_size=batch_size, limit=limit, num_fewshot=num_fewshot)
    found = find_tasks(tasks, include_path)  # before the model is read
    model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
    if context is None:
        context = trained_length(source) or int(model.config.max_position_embeddings)
    options = {"batch_size": batch_size, "num_fewshot": num_fewshot, "limit": limit}
    told = {"checkpoint": source, "weights": weights_digest(source)}
    told["include_path"] = None if include_path is None else str(include_path)
    return told | evaluate_tasks(model, tokenizer, found, context=context, **options)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    *,
    context: int,
    batch_size: int | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Results of `tasks` (from `find_tasks`) as plain numbers and strings that can be written as JSON.

    context: tokens of prompt and answer together; longer prompts lose their beginning and are counted as `truncated`.
    batch_size: rows in one forward, None: 8; changes no number beyond rounding. num_fewshot None: as each task says.
    limit: only the first so many examples of each task. Raises UserError.
    """
    import lm_eval
    from lm_eval.evaluator import evaluate

    check_numbers(context=context, batch_size=batch_size, limit=limit, num_fewshot=num_fewshot)
    check_positions(model, context, f"context={context}", "Give a context of at most {limit}.")
    _set_fewshot(tasks, num_fewshot)
    for module in (random, numpy.random):
        module.seed(SEED)
    torch.manual_seed(SEED)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm_eval bootstraps here then, and not in forks of this process
    training = model.training
    with listening() as notes:
        wrapped = harness_model(model, tokenizer, context, batch_size or DEFAULT_ROWS)
        _check_generation(tasks["tasks"], wrapped)
        try:
            loaded: Any = tasks
            results: Any = evaluate(wrapped, loaded, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=False)
        except UserError:
            raise
        except (ValueError, OSError, ImportError) as error:  # of a task's own code, mostly
            raise UserError(f"tasks {', '.join(tasks['tasks'])}: cannot be measured ({one_line(error)}).") from error
        finally:
            model.train(training)
    return {
        "tasks": {name: _numbers(results, name) | _data_of(tasks["tasks"].get(name)) for name in _order(results)},
        "limit": limit,
        "context": context,
        "truncated": int(wrapped.truncated),
        "batch_size": batch_size or DEFAULT_ROWS,
        "notes": notes,
    } | facts_of(model, tokenizer, lm_eval)


def check_numbers(**numbers: int | None) -> None:
    """Raises UserError for a number below what is allowed."""
    for name, value in numbers.items():
        least = 0 if name == "num_fewshot" else 1
        if value is not None and value < least:
            raise UserError(f"{name}={value}: must be at least {least}.")


def default_output(facts: dict[str, Any]) -> Path:
    """CHECKPOINT/evaluation/tasks-NAMES-CONTEXT.json. Raises UserError where the checkpoint is no local folder."""
    folder = Path(facts["checkpoint"])
    if not folder.is_dir():
        raise UserError(
            f"checkpoint {folder}: it is no local folder, so the numbers have no place beside it. Give --out FILE.json."
        )
    names = "+".join(facts["tasks"])
    if len(names) > 100:  # file names have an end
        names = f"{names[:80]}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    limit = f"-first-{facts['limit']}" if facts["limit"] is not None else ""
    return folder / "evaluation" / f"tasks-{names}-{facts['context']}{limit}.json"


def render(facts: dict[str, Any]) -> str:
    """The numbers as a table, and what they depend on as lines, for a terminal."""
    rows = [("task", "metric", "value", "± error", "examples", "few-shot")]
    for name, task in facts["tasks"].items():
        shown = (str(task["examples"]), "" if task["num_fewshot"] is None else str(task["num_fewshot"]))
        for metric, found in task["metrics"].items():
            rows.append((name, metric, _digits(found["value"]), _digits(found["stderr"]), *shown))
            name, shown = "", ("", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    cut = f"; {facts['truncated']:,} prompts were longer and lost their beginning" if facts["truncated"] else ""
    model = facts["pattern"] or facts["checkpoint"]
    lines = {
        "context": f"{facts['context']:,} tokens{cut}",
        "tokenizer": f"{facts['vocab_size']:,} tokens; every text starts behind {facts['start_symbol']}",
        "model": f"{model}, {facts['parameters']:,} parameters, {facts['dtype']} on {facts['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    if facts["limit"] is not None:
        lines["limit"] = f"only the first {facts['limit']:,} examples of each task: no result to report"
    table += ["", *(f"{name:<15}{value}" for name, value in lines.items())]
    return "\n".join(table + [f"{'note':<15}{note}" for note in facts["notes"]])


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _set_fewshot(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    for name, task in tasks["tasks"].items():
        default = tasks["num_fewshot"][name]
        if num_fewshot and default == 0:
            raise UserError(f"num_fewshot={num_fewshot}: task {name} is defined without examples. Leave it out, or 0.")
        task.set_config(key="num_fewshot", value=(default or 0) if num_fewshot is None else num_fewshot)
        task.set_fewshot_seed(seed=SEED)


def _check_generation(tasks: dict[str, Any], wrapped: Any) -> None:
    """Raises UserError where the answers alone would fill the context."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.get_config("output_type") == "generate_until":
            length = normalize_gen_kwargs(task.get_config("generation_kwargs"), wrapped.max_gen_toks)["max_gen_toks"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
            if length >= wrapped.max_length:
                raise UserError(
                    f"context={wrapped.max_length}: task {name} lets the model write {length} tokens, which leaves no "
                    f"room for the prompt. Give --context {2 * length} or more, or set max_gen_toks in the task."
                )


def _order(results: dict[str, Any]) -> list[str]:
    """Groups and tasks, each group before its members."""
    return [*results.get("groups", {}), *(name for name in results["results"] if name not in results.get("groups", {}))]


def _numbers(results: dict[str, Any], name: str) -> dict[str, Any]:
    found, better = results["results"][name], results["higher_is_better"].get(name) or {}
    metrics = {}
    for key, value in found.items():
        metric, comma, way = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            metrics[metric if way == "none" else f"{metric} ({way})"] = {
                "value": _finite(value),
                "stderr": _finite(found.get(f"{metric}_stderr,{way}")),
                "higher_is_better": better.get(metric),
            }
    return {
        "metrics": metrics,
        "examples": int(found["sample_len"]) if "sample_len" in found else results["n-samples"][name]["effective"],
        "num_fewshot": results["n-shot"].get(name),
        "version": results["versions"].get(name),
    }


def _data_of(task: Any) -> dict[str, Any]:
    """The data set that a task asks about, as `load_dataset` names it; nothing for a group."""
    if task is None:
        return {}
    names = {"path": "dataset_path", "name": "dataset_name"}
    split = task.get_config("test_split") or task.get_config("validation_split")
    return {"dataset": {key: task.get_config(name) for key, name in names.items()} | {"split": split}}


def _finite(value: Any) -> float | None:
    """A number as JSON can hold it; None for NaN, and for the "N/A" of a metric without a standard error."""
    return float(value) if isinstance(value, int | float | numpy.number) and math.isfinite(value) else None
