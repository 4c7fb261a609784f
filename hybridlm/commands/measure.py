"""`evaluate` and `info`: numbers about a checkpoint. `report`: pictures of runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from hybridlm.commands.shared import CHECKPOINT, add_placement
from hybridlm.errors import UserError


def evaluate(options: argparse.Namespace) -> None:
    """measure a checkpoint on a text, or on tasks of lm-evaluation-harness

    With --text: bits per byte and perplexity per token of a UTF-8 text, which is taken as one document. With --tasks:
    what the tasks measure (needs the extra `eval`, and the network where a task's data is not on the disk yet). The
    numbers are printed, and written as JSON with all that is needed to compare them: tokenizer, context, dtype,
    versions.

    With --text and --lengths: what a longer context is worth. The same bytes of the text are predicted with contexts of
    every length, in windows that begin with an empty state and are read with the state carried, and the length at which
    the model stops improving is named, with the standard errors of the differences. Several checkpoints of any kind
    that transformers loads stand side by side, and a picture lies beside the JSON (extra `plot`). Each length is as
    much work as reading the text twice.

    examples:
      hybridlm evaluate runs/demo/run/final --text book.txt
      hybridlm evaluate runs/demo/run/final --text book.txt --context 1024 --dtype bfloat16
      hybridlm evaluate runs/demo/run/final --text book.txt --carry-state
      hybridlm evaluate runs/demo/run/final --text book.txt --lengths 512,2k,8k
      hybridlm evaluate runs/a/final openai-community/gpt2 --text book.txt --text b.txt --lengths 256,1k --out ab.json
      hybridlm evaluate runs/demo/run/final --tasks arc_easy,hellaswag --num-fewshot 5
      hybridlm evaluate runs/demo/run/final --tasks mine --include-path my_tasks --limit 100
    """
    from hybridlm.evaluation.report import write_json

    kind = "tasks" if options.tasks is not None else "lengths" if options.lengths is not None else "text"
    for name in _MEANINGLESS[kind]:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: has no meaning with --{kind}; leave it out.")
    if kind != "lengths":
        _check_single(options)
    _check_place(options)
    facts, text, path = {"text": _text, "lengths": _lengths, "tasks": _tasks}[kind](options)
    place = write_json(path, facts)  # first: a pipe may close after some lines
    print(text)
    print(f"Written to {place}")
    if kind == "lengths":
        _draw(facts, Path(path))


_ONLY_TASKS = ("include_path", "limit", "num_fewshot")
_MEANINGLESS = {
    "text": _ONLY_TASKS,
    "tasks": ("carry_state", "lengths"),
    "lengths": ("context", "carry_state", *_ONLY_TASKS),
}
"""What is measured -> options that are refused with it."""

Measured = tuple[dict[str, Any], str, Any]
"""The facts, the same as text, and the path that they go to."""


def _check_single(options: argparse.Namespace) -> None:
    if len(options.checkpoint) > 1:
        raise UserError(
            f"checkpoint: there are {len(options.checkpoint)}. Several are compared with --lengths only; give one."
        )
    if options.text is not None and len(options.text) > 1:
        raise UserError(f"--text: there are {len(options.text)} files. Several go with --lengths only; give one.")


def _check_place(options: argparse.Namespace) -> None:
    from hybridlm.evaluation.loading import locate
    from hybridlm.evaluation.places import check_beside, check_out

    if options.out is not None:
        check_out(options.out)
        if options.lengths is not None and Path(options.out).suffix.lower() == ".png":
            raise UserError(f"--out {options.out}: the numbers go there as JSON, and the picture beside it as PNG.")
    elif len(options.checkpoint) > 1:
        raise UserError("--out: of several checkpoints the numbers lie beside none. Give --out FILE.json.")
    else:
        check_beside(locate(options.checkpoint[0]))


def _text(options: argparse.Namespace) -> Measured:
    from hybridlm.evaluation import report

    choice = {name: getattr(options, name) for name in ("context", "batch_size", "carry_state", "dtype", "device")}
    facts = report.evaluate_checkpoint(options.checkpoint[0], options.text[0], **choice)
    return facts, report.render(facts), options.out or _own_place(report.default_output(facts), options.dtype, facts)


def _lengths(options: argparse.Namespace) -> Measured:
    from hybridlm.evaluation.lengths import report
    from hybridlm.evaluation.lengths.labels import read_lengths
    from hybridlm.evaluation.lengths.measure import evaluate_lengths
    from hybridlm.evaluation.reading import progress_line

    lengths = read_lengths(options.lengths)
    choice = {name: getattr(options, name) for name in ("batch_size", "dtype", "device")}
    with progress_line(sys.stderr) as progress:
        facts = evaluate_lengths(options.checkpoint, options.text, lengths, progress=progress, **choice)
    path = report.default_output(options.checkpoint[0], options.text, lengths)
    return facts, report.render(facts), options.out or _own_place(path, options.dtype, facts)


def _tasks(options: argparse.Namespace) -> Measured:
    from hybridlm.evaluation import harness

    names = ("context", "batch_size", "dtype", "device", *_ONLY_TASKS)
    choice = {name: getattr(options, name) for name in names}
    facts = harness.evaluate_checkpoint_tasks(options.checkpoint[0], options.tasks.split(","), **choice)
    return facts, harness.render(facts), options.out or _of_dtype(harness.default_output(facts), options.dtype)


def _own_place(path: Path, dtype: str, facts: dict[str, Any]) -> Path:
    """Numbers of other texts lie beside those that are there, too."""
    from hybridlm.evaluation.report import beside_other_texts

    return beside_other_texts(_of_dtype(path, dtype), facts)


def _of_dtype(path: Path, dtype: str) -> Path:
    """The numbers of a dtype that was asked for lie beside those of the checkpoint's own, and do not replace them."""
    return path if dtype == "auto" else path.with_name(f"{path.stem}-{dtype}{path.suffix}")


def _draw(facts: dict[str, Any], path: Path) -> None:
    from hybridlm.evaluation.lengths.picture import picture
    from hybridlm.evaluation.plots import NoMatplotlibError

    try:
        print(f"Picture: {picture(facts, Path(os.path.expanduser(path)).with_suffix('.png'))}")
    except NoMatplotlibError as error:
        print(f"No picture: {error}")


def evaluate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", nargs="+", metavar="CHECKPOINT", help=f"{CHECKPOINT}; several with --lengths")
    either = command.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--text", action="append", metavar="FILE", help="the text file, UTF-8; --lengths: also several times"
    )
    either.add_argument("--tasks", metavar="NAME[,NAME]", help="tasks of lm-evaluation-harness; * and ? are wildcards")
    add("--lengths", metavar="N,N", help="--text: contexts to compare, in tokens, as 512,2k,128k; k is 1,024")
    add("--context", type=int, metavar="N", help="tokens in a window (default: the length of the training, if known)")
    add("--batch-size", type=int, metavar="B", help="windows in one forward (default: 8, or what holds 8,192 tokens)")
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
