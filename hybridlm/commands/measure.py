"""`evaluate` and `info`: numbers about a checkpoint. `report`: pictures of runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hybridlm.commands.shared import CHECKPOINT, add_placement
from hybridlm.errors import UserError


def evaluate(options: argparse.Namespace) -> None:
    """measure a checkpoint on a text, or on tasks of lm-evaluation-harness

    With --text: bits per byte and perplexity per token of a UTF-8 text, which is taken as one document. With --tasks:
    what the tasks measure (needs the extra `eval`, and the network where a task's data is not on the disk yet). The
    numbers are printed, and written as JSON with all that is needed to compare them: tokenizer, context, dtype,
    versions.

    examples:
      hybridlm evaluate runs/demo/run/final --text book.txt
      hybridlm evaluate runs/demo/run/final --text book.txt --context 1024 --dtype bfloat16
      hybridlm evaluate runs/demo/run/final --text book.txt --carry-state
      hybridlm evaluate runs/demo/run/final --tasks arc_easy,hellaswag --num-fewshot 5
      hybridlm evaluate runs/demo/run/final --tasks mine --include-path my_tasks --limit 100
    """
    from hybridlm.evaluation.report import write_json

    facts, text, path = _measured(options)
    print(text)
    print(f"Written to {write_json(path, facts)}")


def _measured(options: argparse.Namespace) -> tuple[dict[str, Any], str, Any]:
    """The facts of `evaluate`, the same as text, and the path that they go to."""
    from hybridlm.evaluation import report
    from hybridlm.evaluation.loading import locate
    from hybridlm.evaluation.places import check_beside, check_out

    choice = {name: getattr(options, name) for name in ("context", "batch_size", "dtype", "device")}
    kind, other = ("text", _ONLY_TASKS) if options.tasks is None else ("tasks", _ONLY_TEXT)
    for name in other:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: has no meaning with --{kind}; leave it out.")
    if options.out is None:
        check_beside(locate(options.checkpoint))
    else:
        check_out(options.out)
    if options.tasks is None:
        facts = report.evaluate_checkpoint(options.checkpoint, options.text, carry_state=options.carry_state, **choice)
        return facts, report.render(facts), options.out or report.default_output(facts)
    from hybridlm.evaluation import harness

    choice |= {name: getattr(options, name) for name in _ONLY_TASKS}
    facts = harness.evaluate_checkpoint_tasks(options.checkpoint, options.tasks.split(","), **choice)
    return facts, harness.render(facts), options.out or harness.default_output(facts)


_ONLY_TEXT, _ONLY_TASKS = ("carry_state",), ("include_path", "limit", "num_fewshot")


def evaluate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    either = command.add_mutually_exclusive_group(required=True)
    either.add_argument("--text", metavar="FILE", help="the text file, UTF-8")
    either.add_argument("--tasks", metavar="NAME[,NAME]", help="tasks of lm-evaluation-harness; * and ? are wildcards")
    add("--context", type=int, metavar="N", help="tokens in a window (default: the length of the training, if known)")
    add("--batch-size", type=int, metavar="B", help="windows in one forward (default: 8); changes no number")
    add("--carry-state", action="store_true", help="--text: carry the state on from window to window")
    add("--include-path", metavar="DIR", help="--tasks: a folder with YAML files of your own tasks")
    add("--num-fewshot", type=int, metavar="K", help="--tasks: examples in the prompt (default: as each task says)")
    add("--limit", type=int, metavar="N", help="--tasks: only the first N examples of each, to try a task out")
    add("--out", metavar="JSON", help="where to write (default: below CHECKPOINT/evaluation)")
    add_placement(command)


def info(options: argparse.Namespace) -> None:
    """say what a checkpoint is

    Pattern, widths, parameters by kind, vocabulary, dtype, and the memory that a sequence needs while it is generated.

    examples:
      hybridlm info runs/demo/run/final
      hybridlm info runs/demo/run/final --json
    """
    from hybridlm.evaluation.info import describe, render

    facts = describe(options.checkpoint)
    print(json.dumps(facts, indent=2) if options.json else render(facts))


def info_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    command.add_argument("--json", action="store_true", help="print JSON")


def report(options: argparse.Namespace) -> None:
    """draw runs: loss, validation, throughput, and more, in one HTML file

    Reads what a run has written so far, so it can still be going on: metrics.jsonl, and config.yaml and samples.jsonl
    where they are. Several runs are drawn into the same pictures, with tables of their figures and of the settings that
    differ. The file holds its pictures and needs no network. Needs the extra `plot`.

    examples:
      hybridlm report runs/demo/run
      hybridlm report runs/short runs/longer --out comparison.html
    """
    from hybridlm.evaluation.run_report import write_report

    print(f"Written to {write_report(options.runs, options.out)}")


def report_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder of a run, or its metrics.jsonl")
    command.add_argument(
        "--out", metavar="HTML", help="where to write (default: RUN/report.html; must be given for several)"
    )
