"""`.eval_results/hybridlm.yaml`: results of benchmarks of the Hub, as `EvalResultEntry` of huggingface_hub.

An entry asks for the id of a data set that is registered as a benchmark, for the id of one of the tasks in its
`eval.yaml`, and for a value on the benchmark's own scale. None of the three follows from what a task of
lm-evaluation-harness says of itself, so the person who makes the card says it, having looked at the benchmark:

    --benchmark gpqa_diamond_zeroshot/acc=Idavidrein/gpqa:gpqa_diamond
    --benchmark TASK/METRIC=DATASET:TASK_ID:percent        the benchmark counts from 0 to 100

The value itself is the one on record. A text of one's own, and the run's validation split, are no benchmark of the Hub:
they are in the card and its metadata alone. So is what was measured with --limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hybridlm.errors import UserError, did_you_mean
from hybridlm.release.card import BENCHMARKS, WRITTEN
from hybridlm.release.model_card.evaluation import Measurement

_FORM = re.compile(r"(?P<measured>[^=]+)=(?P<dataset>[\w.-]+/[\w.-]+):(?P<task>[^:\s]+)(?P<percent>:percent)?")


def entries(asked: Sequence[str], found: Sequence[Measurement]) -> list[EvalResultEntry]:
    """One for each of `asked`. Raises UserError for another form, and for what was not measured."""
    known = {f"{each.task}/{each.metric}": each for each in found if each.task is not None and each.reportable}
    made: list[EvalResultEntry] = []
    for words in asked:
        form = _FORM.fullmatch(words)
        if form is None:
            raise UserError(
                f"--benchmark {words}: must be TASK/METRIC=DATASET:TASK_ID, with :percent behind it where the "
                "benchmark counts to 100, e.g. gpqa_diamond_zeroshot/acc=Idavidrein/gpqa:gpqa_diamond."
            )
        each = known.get(form["measured"])
        if each is None:
            there = f"there are {', '.join(known)}" if known else "there is none"
            raise UserError(
                f"--benchmark {words}: {form['measured']} is no task and metric on record"
                f"{did_you_mean(form['measured'], known)}; {there}. `hybridlm evaluate CHECKPOINT --tasks NAME` "
                "measures one (--limit makes no result to report)."
            )
        if any((one.dataset_id, one.task_id) == (form["dataset"], form["task"]) for one in made):
            raise UserError(f"--benchmark {words}: {form['dataset']}:{form['task']} is given twice. Give it once.")
        value = each.value * 100 if form["percent"] else each.value
        made.append(EvalResultEntry(form["dataset"], form["task"], round(value, 6), notes=_notes(each)))
    return made


def text(made: list[EvalResultEntry]) -> str:
    """The file."""
    body: Any = eval_result_entries_to_yaml(made)
    return f"{WRITTEN}\n{yaml.safe_dump(body, sort_keys=False, allow_unicode=True)}"


def candidates(found: Sequence[Measurement], asked: Sequence[str]) -> str | None:
    """A line about tasks whose data lie on the Hub and that nobody has named a benchmark for; None without any."""
    named = {words.partition("=")[0] for words in asked}
    there: dict[str, None] = {}
    for each in found:
        path = str((each.dataset or {}).get("path") or "")
        if each.reportable and "/" in path and f"{each.task}/{each.metric}" not in named:
            there[f"{each.task}/{each.metric} ({path})"] = None
    if not there:
        return None
    return (
        f"Not in {BENCHMARKS}: {', '.join(there)}. Where the data set is a benchmark of the Hub, name its task with "
        "--benchmark TASK/METRIC=DATASET:TASK_ID."
    )


def _notes(each: Measurement) -> str:
    shots = each.setting.get("num_fewshot")
    return ", ".join(
        [
            f"lm-evaluation-harness {each.task}",
            each.metric,
            *([f"{shots}-shot"] if shots is not None else []),
            f"context {each.setting['context']}",
            each.dtype,
        ]
    )
