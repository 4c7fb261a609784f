"""`generate` and `read`: a checkpoint writes, and reads."""

from __future__ import annotations

import argparse
import sys

from hybridlm.commands.shared import CHECKPOINT, add_drawing, add_placement, drawing


def generate(options: argparse.Namespace) -> None:
    """let a checkpoint write

    Continues PROMPT and prints the text as it is written.

    examples:
      hybridlm generate runs/demo/run/final "It is a truth"
      hybridlm generate runs/demo/run/final "Anne" --temperature 0 --max-new-tokens 50
      hybridlm generate runs/demo/run/final --seed 7 --top-p 0.95
      hybridlm generate runs/demo/run/final " She answered" --state book.state --answers 3
    """
    from hybridlm.evaluation.generate import check_options, generate_text
    from hybridlm.evaluation.loading import load_checkpoint

    choice = drawing(options)
    check_options(**choice, answers=options.answers)  # before the model is read
    model, tokenizer = load_checkpoint(options.checkpoint, dtype=options.dtype, device=options.device)
    if options.state is not None:
        from hybridlm.evaluation.reading import load_state

        choice["state"] = load_state(model, tokenizer, options.state)
    for number in range(options.answers):
        if options.answers > 1:
            print(f"{chr(10) * (number > 0)}[{number + 1}, seed {options.seed + number}]")
        choice["seed"] = options.seed + number
        generate_text(model, tokenizer, options.prompt, stream=sys.stdout, **choice)


def generate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("prompt", nargs="?", default="", metavar="PROMPT", help="the beginning (default: empty, a new document)")
    add_drawing(command, "what is written, in tokens")
    add("--state", metavar="FILE", help="go on from what `hybridlm read` has read; PROMPT continues that text")
    add("--answers", type=int, default=1, metavar="N", help="write N texts, with seeds from --seed on (default: 1)")
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
