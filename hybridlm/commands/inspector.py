"""`inspect`: what the memory units of a checkpoint do over a text, and what they are good for."""

from __future__ import annotations

import argparse
import json
import sys

from hybridlm.commands.shared import CHECKPOINT, add_placement
from hybridlm.errors import UserError


def inspect(options: argparse.Namespace) -> None:
    """show what memory units do over a text

    Runs a checkpoint over the beginning of a text and writes one HTML page: the state of every memory unit at every
    token, where it writes, how long it holds, which units go along with quotation marks, paragraphs, sentences and the
    position in the document, and the text coloured by any unit. The page needs no network.

    With --flip or --freeze, no page: the text is continued with and without the change of these units, and the change
    of the next-token distribution is printed token by token. Units are named LAYER.UNIT, both from 0; LAYER alone names
    all of a layer.

    examples:
      hybridlm inspect runs/demo/run/final --text book.txt
      hybridlm inspect runs/demo/run/final --text book.txt --tokens 2000 --out units.html
      hybridlm inspect runs/demo/run/final --text book.txt --flip 1.17,3.4 --at 500
      hybridlm inspect runs/demo/run/final --text book.txt --freeze 1.17=+1 --freeze 3.4
    """
    from hybridlm.evaluation.inspector.inspection import inspect_checkpoint, render_inspection
    from hybridlm.evaluation.reading import progress_line

    if options.flip or options.freeze:
        _intervene(options)
        return
    for name in ("at", "max_new_tokens", "temperature", "seed"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: has no meaning without --flip or --freeze; leave it out.")
    choice = {name: getattr(options, name) for name in ("tokens", "out", "dtype", "device")}
    with progress_line(sys.stderr) as progress:
        facts = inspect_checkpoint(options.checkpoint, options.text, progress=progress, **choice)
    print(render_inspection(facts))
    print(f"Written to {facts['out']}")


def _intervene(options: argparse.Namespace) -> None:
    from hybridlm.evaluation.generate import check_options
    from hybridlm.evaluation.inspector.continuation import Writing
    from hybridlm.evaluation.inspector.inspection import (
        compare_checkpoint,
        default_output,
        render_comparison,
        write_file,
    )
    from hybridlm.evaluation.loading import locate
    from hybridlm.evaluation.places import check_beside, check_out

    source = locate(options.checkpoint)
    if options.out is None:
        check_beside(source)
    path = default_output(source, options.text, "units.json") if options.out is None else check_out(options.out)
    given = {"tokens": options.max_new_tokens, "temperature": options.temperature, "seed": options.seed}
    writing = Writing(**{name: value for name, value in given.items() if value is not None})
    check_options(writing.tokens, writing.temperature, 1.0, 0, writing.seed)
    facts = compare_checkpoint(
        options.checkpoint,
        options.text,
        flips=_names(options.flip),
        freezes=dict(_frozen(part) for part in _names(options.freeze)),
        at=options.at,
        tokens=options.tokens,
        writing=writing,
        dtype=options.dtype,
        device=options.device,
    )
    print(render_comparison(facts))
    write_file(path, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    print(f"Written to {path}")


def _names(given: list[str]) -> list[str]:
    return [part.strip() for words in given for part in words.split(",") if part.strip()]


def _frozen(part: str) -> tuple[str, float | None]:
    name, sign, value = part.partition("=")
    try:
        return name.strip(), float(value) if sign else None
    except ValueError:
        raise UserError(f"--freeze {part}: {value!r} is no number. Give e.g. {name}=+1, or {name} alone.") from None


def inspect_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    units = "may be given again"
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("--text", required=True, metavar="FILE", help="the text file, UTF-8")
    add("--tokens", type=int, default=10_000, metavar="N", help="read at most N tokens of it (default: %(default)s)")
    add("--flip", action="append", default=[], metavar="UNIT[,UNIT]", help=f"turn the state of units round; {units}")
    add(
        "--freeze",
        action="append",
        default=[],
        metavar="UNIT[=STATE]",
        help=f"let a unit keep STATE, or the state that it has; {units}",
    )
    add("--at", type=int, metavar="TOKEN", help="in front of which token, 0 the start symbol (default: the last read)")
    add("--max-new-tokens", type=int, metavar="N", help="length of the continuations (default: 40)")
    add("--temperature", type=float, metavar="X", help="of the continuations (default: 0, the likeliest token)")
    add("--seed", type=int, help="where they are drawn, both from the same random numbers (default: 0)")
    add(
        "--out",
        metavar="FILE",
        help="the page, or with a change the numbers as JSON (default: in CHECKPOINT/evaluation)",
    )
    add_placement(command)
