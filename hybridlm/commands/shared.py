"""What several commands share: words of their help, options, who may speak."""

from __future__ import annotations

import argparse
import os
from typing import Any

CHECKPOINT = "the folder of a checkpoint, or OWNER/MODEL on the Hugging Face Hub"


def add_overrides(command: argparse.ArgumentParser) -> None:
    meaning = "fields of the recipe to set, values as in YAML"
    command.add_argument("overrides", nargs="*", metavar="SECTION.FIELD=VALUE", help=meaning)


def add_placement(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_drawing(command: argparse.ArgumentParser, length: str) -> None:
    """The options that `evaluation.generate.check_options` checks; length: of what --max-new-tokens is the length."""
    add = command.add_argument
    add("--max-new-tokens", type=int, default=200, metavar="N", help=f"length of {length} (default: %(default)s)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest token (default: %(default)s)")
    meaning = "draw from the likeliest tokens that sum to X (default: 1)"
    add("--top-p", type=float, default=1.0, metavar="X", help=meaning)
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (default: 0, all)")
    add("--seed", type=int, default=0, help="the same seed writes the same text (default: %(default)s)")


def drawing(options: argparse.Namespace) -> dict[str, Any]:
    """What was given for the options of `add_drawing`."""
    return {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}


def other_process() -> str:
    """ "process 1: " in the processes of a launcher other than the first; "" elsewhere."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "
