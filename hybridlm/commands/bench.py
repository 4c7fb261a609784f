"""`bench-generation`: what a token costs, however long the text before it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hybridlm.commands.shared import CHECKPOINT, add_placement
from hybridlm.commands.streams import say
from hybridlm.errors import UserError


def bench_generation(options: argparse.Namespace) -> None:
    """measure time and memory of generation against position, up to 1,000,000 tokens

    At each position: the time of a token (a single step of the model with its cache, and inside `generate`), the bytes
    of state, and the memory of the process, beside a Transformer of equal parameters to where that fits. Each model is
    a process of its own, and they take turns. The numbers are printed and written as JSON with a picture beside it
    (extra `plot`) after every position, so that Ctrl-C keeps what there is. The text is random; no tokenizer is needed.

    A Transformer with random weights is made where none is given. What lies before a position is read many tokens at a
    time, or, where that takes long and the cache holds nothing but keys and values, filled with random numbers. A peer
    with RoPE goes beyond the length it was made for; one with a table of positions ends there.

    examples:
      hybridlm bench-generation runs/demo/run/final
      hybridlm bench-generation runs/demo/run/final --positions 1000,10000,100000 --memory-limit 4
      hybridlm bench-generation runs/demo/run/final --peer path/to/llama --dtype float32
      hybridlm bench-generation runs/demo/run/final --no-peer --out numbers.json
    """
    from hybridlm.bench.position_report import report
    from hybridlm.bench.position_table import table
    from hybridlm.evaluation.lengths.labels import read_tokens

    out = _place(options)
    names = ("peer", "steps", "memory_limit", "dtype", "device")
    choice = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    choice |= {"alone": options.no_peer, "seconds": options.time_limit, "progress": say}
    if options.positions is not None:
        choice["marks"] = read_tokens("positions", options.positions)
    entry = report(options.checkpoint, out, **choice)
    print(table(entry))
    print(f"Written to {out}")
    print(_picture(entry, out.with_suffix(".png")), flush=True)
    if not entry["finished"]:
        raise KeyboardInterrupt


def _place(options: argparse.Namespace) -> Path:
    from hybridlm.evaluation.loading import locate
    from hybridlm.evaluation.places import check_beside, check_out

    if options.out is None:
        source = locate(options.checkpoint)
        check_beside(source)
        return Path(source) / "evaluation" / "generation.json"
    out = check_out(options.out)
    if out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json; a picture of the same name goes beside it.")
    return out


def _picture(entry: dict[str, Any], out: Path) -> str:
    from hybridlm.bench.position_picture import draw
    from hybridlm.evaluation.plots import NoMatplotlibError

    try:
        return f"Picture: {draw(entry, out)}"
    except NoMatplotlibError as error:
        return f"No picture: {error}"


def bench_generation_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    either = command.add_mutually_exclusive_group()
    either.add_argument("--peer", metavar="PATH", help="a causal language model to compare with (default: one is made)")
    either.add_argument("--no-peer", action="store_true", help="measure the checkpoint alone")
    add: Any = command.add_argument
    add("--positions", metavar="N[,N]", help="tokens in the cache, as 1000,2k,1m; k is 1,024 "
        "(default: 1, 2 and 5 x 1,000 and so on to 1,000,000)")  # fmt: skip
    add("--steps", type=int, metavar="N", help="tokens timed at each position, in each of two ways (default: 64)")
    add("--memory-limit", type=float, metavar="GIB", help="that a cache may take (default: half of what is free)")
    add("--time-limit", type=float, default=300.0, metavar="SECONDS", help="of reading up to a position "
        "(default: %(default)g)")  # fmt: skip
    add("--out", metavar="JSON", help="where to write (default: CHECKPOINT/evaluation/generation.json)")
    add_placement(command)
