"""`generate` and `read`: a checkpoint writes, and reads."""

from __future__ import annotations

import argparse
import sys

from hybridlm.commands.shared import CHECKPOINT, add_drawing, add_placement, drawing
from hybridlm.commands.streams import say
from hybridlm.errors import UserError


def generate(options: argparse.Namespace) -> None:
    """let a checkpoint write

    Continues PROMPT and prints the text as it is written. With --input, continues every "prompt" of a JSON lines file
    in batches, and appends to --output a line for each: its fields, "text" (what was written), "seed", "tokens" and
    "finish_reason". The same command again goes on where an earlier one was stopped. What is written to a line depends
    on its place and the seed, not on the batches (but for rounding), and is not what PROMPT draws with that seed.

    examples:
      hybridlm generate runs/demo/run/final "It is a truth"
      hybridlm generate runs/demo/run/final "Anne" --temperature 0 --max-new-tokens 50
      hybridlm generate runs/demo/run/final --seed 7 --top-p 0.95
      hybridlm generate runs/demo/run/final " She answered" --state book.state --answers 3
      hybridlm generate runs/demo/run/final --input prompts.jsonl --output answers.jsonl --batch-size 16
    """
    from hybridlm.evaluation.generate import check_options, generate_text
    from hybridlm.evaluation.loading import load_checkpoint

    choice = drawing(options)
    check_options(**choice, answers=options.answers)  # before the model is read
    if any(value is not None for value in (options.input, options.output, options.batch_size)):
        _answer_file(options)
        return
    model, tokenizer = load_checkpoint(options.checkpoint, dtype=options.dtype, device=options.device)
    if options.state is not None:
        from hybridlm.evaluation.reading import load_state

        choice["state"] = load_state(model, tokenizer, options.state)
    for number in range(options.answers):
        if options.answers > 1:
            print(f"{chr(10) * (number > 0)}[{number + 1}, seed {options.seed + number}]")
        choice["seed"] = options.seed + number
        generate_text(model, tokenizer, options.prompt or "", stream=sys.stdout, **choice)


def _answer_file(options: argparse.Namespace) -> None:
    from hybridlm.evaluation.batches import answer_file, render
    from hybridlm.evaluation.reading import progress_line

    if options.input is None or options.output is None:
        given = "--input" if options.input is not None else "--output" if options.output is not None else "--batch-size"
        raise UserError(f"{given}: prompts of a file need both --input FILE and --output FILE.")
    if options.prompt is not None:
        raise UserError(f"PROMPT {options.prompt!r} and --input: give one of the two, or put the prompt into the file.")
    names = ("answers", "state", "dtype", "device")
    choice = {**drawing(options), **{name: getattr(options, name) for name in names}}
    if options.batch_size is not None:
        choice["batch_size"] = options.batch_size
    try:
        with progress_line(sys.stderr) as progress:
            facts = answer_file(
                options.checkpoint,
                options.input,
                options.output,
                progress=progress,
                waiting=lambda: say(f"{options.output}: another process writes to it; waiting until it has ended."),
                **choice,
            )
    except KeyboardInterrupt:
        say(f"{options.output} keeps the lines that are written; the same command goes on behind them.")
        raise
    print(render(facts))


def generate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("prompt", nargs="?", metavar="PROMPT", help="the beginning (default: empty, a new document)")
    add_drawing(command, "what is written, in tokens")
    add("--state", metavar="FILE", help="go on from what `hybridlm read` has read; PROMPT continues that text")
    add("--answers", type=int, default=1, metavar="N", help="write N texts, with seeds from --seed on (default: 1)")
    add("--input", metavar="FILE", help='prompts, a JSON object with a "prompt" on each line')
    add("--output", metavar="FILE", help="where the lines go that answer those of --input")
    add("--batch-size", type=int, metavar="N", help="prompts of --input that are continued at a time (default: 8)")
    add_placement(command)


def read(options: argparse.Namespace) -> None:
    """read a long text once, into a file that `generate` begins from

    Sends the text through the model and saves the state that is left of it, which has the same size for a page and for
    a library where the pattern has no full attention. `generate --state` then writes any number of answers, each from
    the end of the text, without reading it again.

    examples:
      hybridlm read runs/demo/run/final book.txt --out book.state
      hybridlm generate runs/demo/run/final " She answered" --state book.state --answers 3
      hybridlm read runs/demo/run/final volume_2.txt --after volume_1.state --out both.state
    """
    from hybridlm.evaluation.reading import progress_line, read_book, render

    names = ("after", "dtype", "device")
    choice = {name: getattr(options, name) for name in names}
    with progress_line(sys.stderr) as progress:
        facts = read_book(options.checkpoint, options.book, options.out, progress=progress, **choice)
    print(render(facts))
    print(f'Try:    hybridlm generate {options.checkpoint} " And" --state {options.out}')


def read_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("book", metavar="BOOK", help="the text file, UTF-8")
    add("--out", required=True, metavar="FILE", help="where the state goes; an older state there is replaced")
    add("--after", metavar="FILE", help="go on from this state: BOOK continues the text that was read into it")
    add_placement(command)
