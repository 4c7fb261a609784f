"""What was measured, with all that it depends on, as JSON; pictures go beside it under the same name."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hybridlm
from hybridlm.bench.plots import draw
from hybridlm.errors import UserError
from hybridlm.files import replace_file

KINDS = ("kernels", "training", "generation")
FOLDER = Path("scripts/results")
"""Where results lie that a page is made from; those of a quick run go elsewhere."""
QUICK_FOLDER = Path("runs/bench")


def default_out(kind: str, device: str, variant: str, quick: bool) -> Path:
    return (QUICK_FOLDER if quick else FOLDER) / f"{kind}_{device}_{variant}.json"


def check_out(out: str | Path) -> Path:
    """A path that a result can be written to, made sure of before anything is measured. Raises UserError."""
    path = Path(out).expanduser()
    if path.suffix != ".json":
        raise UserError(f"out={str(out)!r}: must end in .json; a picture of the same name goes beside it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r}: its folder cannot be made ({error.strerror}).") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"out={str(out)!r}: cannot be written. Give the path of a file in a folder that can.")
    return path


def command(script: str, words: Sequence[str]) -> str:
    """The line that measures again, without where the result went."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--out="):
            kept += [] if word == "--out" else [word]
        skip = word == "--out"
    return shlex.join(["python", f"scripts/{Path(script).name}", *kept])


def record(kind: str, device: torch.device, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The result with its settings and the machine."""
    return {"kind": kind, "machine": machine(device), "settings": settings, **result}


def keep(entry: dict[str, Any], out: Path) -> list[str]:
    """Writes the record and its picture, each whole or not at all; what was written, a line each. Without matplotlib
    there is no picture, and a line says so."""
    replace_file(out, json.dumps(entry, indent=1) + "\n")
    lines = [f"Results: {out}"]
    try:
        lines.append(f"Picture: {draw(entry, out.with_suffix('.png'))}")
    except UserError as error:
        lines.append(f"No picture: {error}")
    return lines


def keep_unfinished(entry: dict[str, Any], out: Path) -> str:
    """Writes the record of a benchmark that goes on, and says so: what ends it before its time does not take the
    figures along. No page is made of such a record."""
    replace_file(out, json.dumps(entry | {"unfinished": True}, indent=1) + "\n")
    return f"{out} holds what was measured until then"


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


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the settings; what is not known is None."""
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "hybridlm": hybridlm.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return facts | {name: _version(name) for name in ("torch", "transformers", "triton")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the package's source, with "+" where files differ from it; None where git does not know it."""
    source = Path(hybridlm.__file__).parent
    ours = _git(source, "ls-files", "__init__.py")
    commit = _git(source, "rev-parse", "--short=12", "HEAD") if ours else None
    return commit and commit + ("+" if _git(source, "status", "--porcelain", "--untracked-files=no", ".") else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
