"""What was measured of a checkpoint: its validation in the run, and the JSON files below CHECKPOINT/evaluation.

A file counts where it is of `hybridlm evaluate` and of this model: its pattern, its size, its weights; what was
measured on a part of a task (`--limit`) is shown as such, and is no result to report.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from hybridlm.release.model_card.markdown import code, table
from hybridlm.release.model_card.training import Training


@dataclass(frozen=True)
class Measurement:
    """A number, with what it depends on as Markdown."""

    on: str
    """What it was measured on, in words for a title."""
    metric: str
    value: float
    error: float | None
    context: str
    start: str
    """How texts begin, and what is counted."""
    counted: str
    """Tokens and bytes, or examples."""
    dtype: str
    command: str = ""
    """What measures it again."""
    task: str | None = None
    """Of lm-evaluation-harness."""
    dataset: dict[str, Any] | None = None
    """Of a task: path, name and split, as `load_dataset` takes them."""
    reportable: bool = True
    setting: dict[str, Any] = field(default_factory=dict)
    """What it depends on, for a machine."""


class Model(NamedTuple):
    """What tells a model from others."""

    pattern: str
    parameters: int
    weights: str | None
    """`weights_digest`."""


def measurements(checkpoint: Path, name: str, model: Model, log: list[str]) -> list[Measurement]:
    """Those of the files, in order of their names. name: of the checkpoint in commands. log: gets a line for each file
    that is left out."""
    found: list[Measurement] = []
    for path in sorted((checkpoint / "evaluation").glob("*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(facts, dict) and (read := _reader(facts)) is not None:
                found += _finite(read(facts, name, model))
            else:
                log.append(f"{path} holds no evaluation on a text or on tasks: it is left out")
        except _OtherModelError as error:
            log.append(f"{path} is of {error}: it is left out")
        except _UNREADABLE as error:
            log.append(f"{path} cannot be read ({type(error).__name__}: {error}): it is left out")
    return found


def validation(training: Training, start: str | None) -> list[Measurement]:
    """The run's own, of this checkpoint. start: the start symbol of its tokenizer, if that is known."""
    row = training.validation()
    key = "bits_per_byte_ema" if training.averaged else "bits_per_byte"
    if row is None or not isinstance(row.get(key), float) or not math.isfinite(row[key]):
        return []
    mixed = training.setting("training.mixed_precision")
    length = training.setting("data.sequence_length")
    counts = [f"{row[key]:,} {key[2:]}" for key in ("n_tokens", "n_bytes") if isinstance(row.get(key), int)]
    return [
        Measurement(
            on=_split(training, row),
            metric="bits per byte",
            value=row[key],
            error=None,
            context=f"{length:,}, each window begins anew" if length else "",
            start=f"{f'documents behind {code(start)}; ' if start else ''}start and end symbols not counted",
            counted=", ".join(counts),
            dtype="float32" if mixed == "no" else f"{mixed} autocast" if mixed else "",
            setting={"context": length, "carry_state": False},
        )
    ]


def evaluation_table(found: list[Measurement]) -> str:
    """ "" where nothing was measured."""
    header = ["measured on", "metric", "value", "context, tokens", "start of a text", "counted", "dtype"]
    return table(header, ([_on(m), m.metric, _value(m), m.context, m.start, m.counted, m.dtype] for m in found))


def evaluation_commands(found: list[Measurement]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(m.command for m in found if m.command))


def model_index(found: list[Measurement], task: str) -> list[EvalResult]:
    """The same for the metadata. task: what the Hub calls the model's.

    Results of one type, configuration and split of data share an entry: data that are not on the Hub have the type that
    `load_dataset` reads them as, and their own name as configuration.
    """
    results = []
    for each in found:
        if not each.reportable:
            continue
        data = each.dataset or {"path": "text"}
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=str(data["path"]),
                dataset_name=each.task or each.on,
                dataset_config=data.get("name") or (None if "/" in str(data["path"]) else each.task or each.on),
                dataset_split=data.get("split"),
                metric_type=each.metric.replace(" ", "_"),
                metric_name=f"{each.task} {each.metric}" if each.task else each.metric,
                metric_args=each.setting,
                metric_value=round(each.value, 6),
            )
        )
    return results


def _split(training: Training, row: dict[str, Any]) -> str:
    """The validation split, or how much of it was read."""
    most = None if training.recipe is None else training.recipe.validation.max_windows
    part = f" (its first {most:,} sequences)" if most is not None and row.get("windows") == most else ""
    return f"the validation split of its data{part}"


class _OtherModelError(Exception):
    pass


_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _reader(facts: dict[str, Any]) -> Any:
    if isinstance(facts.get("tasks"), dict):
        return _tasks
    if "text" in facts and "bits_per_byte" in facts:
        return _text
    if "better_than_the_first" in facts:
        return _lengths
    return None


def _text(facts: dict[str, Any], name: str, model: Model) -> Iterator[Measurement]:
    _check(facts, model)
    words = ["hybridlm", "evaluate", name, "--text", facts["text"], "--context", str(facts["context"])]
    words += ["--carry-state"] if facts["carry_state"] else []
    hashes = [facts["text_sha256"]] if "text_sha256" in facts else []  # not on record in older files
    way = "state carried on" if facts["carry_state"] else "each window begins anew"
    lossless = "" if facts["tokenizer_is_lossless"] else "; the tokenizer is NOT lossless on this text"
    shared = {
        "on": Path(facts["text"]).name,
        "error": None,
        "context": f"{facts['context']:,}, {way}",
        "start": _start(facts),
        "counted": f"{facts['n_tokens']:,} tokens, {facts['n_bytes']:,} bytes{_hashed(hashes)}{lossless}",
        "dtype": _dtype(facts),
        "command": shlex.join([*words, "--dtype", facts["dtype"]]),
        "reportable": bool(facts["tokenizer_is_lossless"]),
        "setting": {name: facts[name] for name in ("context", "carry_state", "dtype")} | _text_setting(hashes),
    }
    yield Measurement(metric="bits per byte", value=float(facts["bits_per_byte"]), **shared)


def _lengths(facts: dict[str, Any], name: str, model: Model) -> Iterator[Measurement]:
    if len(facts["checkpoints"]) != 1:
        raise ValueError("it is of several checkpoints")
    (found,) = facts["checkpoints"]
    _check(found, model)
    texts = [word for text in facts["texts"] for word in ("--text", text)]
    hashes = facts.get("texts_sha256", [])
    lengths = ",".join(map(str, facts["lengths"]))
    command = shlex.join(["hybridlm", "evaluate", name, *texts, "--lengths", lengths, "--dtype", found["dtype"]])
    for each in found["by_context"]:
        if each.get("bits_per_byte") is None:
            continue
        yield Measurement(
            on=", ".join(Path(text).name for text in facts["texts"]),
            metric="bits per byte",
            value=float(each["bits_per_byte"]),
            error=each["standard_error"],
            context=f"{each['length']:,}, windows begin anew, the same bytes predicted at every length",
            start=f"windows behind {code(found['start_symbol'])}",
            counted=f"{facts['target_bytes']:,} of {facts['n_bytes']:,} bytes{_hashed(hashes)}",
            dtype=_dtype(found),
            command=command,
            reportable=bool(found["tokenizer_is_lossless"]),
            setting={"context": each["length"], "carry_state": False, "dtype": found["dtype"], "part": "second halves"}
            | {"predicted_bytes": facts["target_bytes"]}
            | _text_setting(hashes),
        )


def _hashed(hashes: list[str]) -> str:
    """How readers tell the texts from others of the same names."""
    return f" (SHA-256 {', '.join(f'{each[:8]}…' for each in hashes)})" if hashes else ""


def _text_setting(hashes: list[str]) -> dict[str, Any]:
    return {"text_sha256": ", ".join(hashes)} if hashes else {}


def _tasks(facts: dict[str, Any], name: str, model: Model) -> Iterator[Measurement]:
    _check(facts, model)
    command = _task_command(facts, name)
    part = f"the first {facts['limit']:,} only: no result to report; " if facts["limit"] is not None else ""
    cut = f", {facts['truncated']:,} prompts cut" if facts["truncated"] else ""
    for task, found in facts["tasks"].items():
        shots = "" if found["num_fewshot"] is None else f", {found['num_fewshot']}-shot"
        for metric, figures in found["metrics"].items():
            if figures["value"] is None:
                continue
            yield Measurement(
                on=f"{task}{shots}",
                metric=metric,
                value=float(figures["value"]),
                error=figures["stderr"],
                context=f"{facts['context']:,}{cut}",
                start=_start(facts),
                counted=f"{part}{found['examples']:,} examples",
                dtype=_dtype(facts),
                command=command,
                task=task,
                dataset=found.get("dataset"),
                reportable=facts["limit"] is None,
                setting={"num_fewshot": found["num_fewshot"], "context": facts["context"], "dtype": facts["dtype"]},
            )


def _task_command(facts: dict[str, Any], name: str) -> str:
    """Examples in the prompt are named where all tasks had as many; where they had not, each had its own default."""
    words = ["hybridlm", "evaluate", name, "--tasks", ",".join(facts["tasks"]), "--context", str(facts["context"])]
    shots = {found["num_fewshot"] for found in facts["tasks"].values()} - {None}
    words += ["--num-fewshot", str(*shots)] if len(shots) == 1 else []
    for option in ("include_path", "limit"):
        words += [f"--{option.replace('_', '-')}", str(facts[option])] if facts.get(option) is not None else []
    return shlex.join([*words, "--dtype", facts["dtype"]])


def _finite(found: Iterator[Measurement]) -> list[Measurement]:
    """Raises ValueError for a value that is no number, which `hybridlm evaluate` never writes."""
    measured = list(found)
    if not all(math.isfinite(each.value) for each in measured):
        raise ValueError("a value is not finite")
    return measured


def _check(facts: dict[str, Any], model: Model) -> None:
    if (facts["pattern"], facts["parameters"]) != model[:2]:
        raise _OtherModelError("another model")
    measured = facts.get("weights")  # not on record in older files
    if measured is not None and model.weights is not None and measured != model.weights:
        raise _OtherModelError("other weights, which lay here before")


def _start(facts: dict[str, Any]) -> str:
    counted = "" if facts["end_symbol_counted"] else "; end symbol not counted"
    return f"behind {code(facts['start_symbol'])}{counted}"


def _dtype(facts: dict[str, Any]) -> str:
    return f"{facts['dtype']} on {facts['device']}"


def _on(found: Measurement) -> str:
    return code(found.on) if found.command else found.on


def _value(found: Measurement) -> str:
    return f"{found.value:.4f}" + (f" ± {found.error:.4f}" if found.error is not None else "")
