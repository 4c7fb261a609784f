"""What several commands share: words of their help, options, who may speak."""

from __future__ import annotations

import argparse
import os

CHECKPOINT = "the folder of a checkpoint, or OWNER/MODEL on the Hugging Face Hub"


def add_overrides(command: argparse.ArgumentParser) -> None:
    meaning = "fields of the recipe to set, values as in YAML"
    command.add_argument("overrides", nargs="*", metavar="SECTION.FIELD=VALUE", help=meaning)


def add_placement(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def other_process() -> str:
    """ "process 1: " in the processes of a launcher other than the first; "" elsewhere."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "
