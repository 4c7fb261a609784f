"""What was measured, with all that it depends on, as JSON; pictures go beside it under the same name."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hybridlm.bench.plots import draw
from hybridlm.errors import UserError
from hybridlm.files import expanded, replace_file, try_folder
from hybridlm.machine import machine
from hybridlm.ops.dispatch import VARIABLE, check_environment, forced

KINDS = ("kernels", "training", "generation")
QUICK_FOLDER = Path("runs/bench")


def folder_of(script: str) -> Path:
    """Where results lie that a page is made from, beside the script, whichever folder it is started in; as it is
    reached from there."""
    return Path(os.path.relpath(Path(script).resolve().parent / "results"))


def default_out(script: str, kind: str, device: str, variant: str, quick: bool) -> Path:
    """Those of a quick run go elsewhere. Figures of a path that is forced stand in no other figures' place."""
    path = forced() if kind in ("training", "generation") else None
    name = f"{kind}_{device}_{variant}" + (f"_{path}" if path else "")
    return (QUICK_FOLDER if quick else folder_of(script)) / f"{name}.json"


def check_out(out: str | Path) -> Path:
    """A path that a result can be written to, made sure of before anything is measured; nothing is left of the trial.
    Raises UserError."""
    path = expanded(out)
    if path.suffix != ".json":
        raise UserError(f"out={str(out)!r}: must end in .json; a picture of the same name goes beside it.")
    if path.is_dir():
        raise UserError(f"out={str(out)!r}: is a folder. Give the path of a file in it.")
    try:
        try_folder(path.parent)
    except OSError as error:
        raise UserError(f"out={str(out)!r}: cannot be written ({error.strerror}). Give another place.") from None
    return path


def command(script: str, words: Sequence[str], processes: int = 1) -> str:
    """The line that measures again, without where the result went (--out, --json)."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith(("--out=", "--json=")):
            kept += [] if word in ("--out", "--json") else [word]
        skip = word in ("--out", "--json")
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    path = check_environment()
    before = f"{VARIABLE}={shlex.quote(path)} " if path else ""
    return before + shlex.join([*launcher, f"scripts/{Path(script).name}", *kept])


def record(kind: str, device: torch.device, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The result with its settings and the machine."""
    return {"kind": kind, "machine": machine(device), "settings": settings, **result}


def keep(entry: dict[str, Any], out: Path) -> list[str]:
    """Writes the record and its picture, each whole or not at all; what was written, a line each. Without matplotlib
    there is no picture, and a line says so."""
    write(entry, out)
    lines = [f"Results: {out}"]
    try:
        lines.append(f"Picture: {draw(entry, out.with_suffix('.png'))}")
    except UserError as error:
        lines.append(f"No picture: {error}")
    return lines


def keep_unfinished(entry: dict[str, Any], out: Path) -> str:
    """Writes the record of a benchmark that goes on, and says so: what ends it before its time does not take the
    figures along. No page is made of such a record."""
    write(entry | {"unfinished": True}, out)
    return f"{out} holds what was measured until then"


def write(entry: dict[str, Any], out: Path) -> None:
    """The file, and its folder where it is not there. Raises UserError where it cannot be written any more."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, json.dumps(entry, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={str(out)!r}: cannot be written any more ({error.strerror}).") from None


def load(path: str | Path) -> dict[str, Any]:
    """A record. Raises UserError where the file holds none."""
    try:
        entry = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"results {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"results {path}: no JSON ({error}). Measure again.") from None
    parts = {"machine", "settings", "rows"}
    if not isinstance(entry, dict) or entry.get("kind") not in KINDS or not parts <= set(entry):
        raise UserError(f"results {path}: not written by a benchmark of this package. Take it out of the folder.")
    return entry
