"""What figures depend on besides settings: the machine, versions, the commit of the package, the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hybridlm

_OURS = ("hybridlm", "hybridlm_command.py")
"""Programs that are the command; also as `python -m hybridlm_command` and `python -m hybridlm.cli`."""


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the software, as names and numbers; what is not known is None."""
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


def started_with(words: Sequence[str] | None = None) -> str | None:
    """The line that this process was started with, without where Python lies; None where it was typed into Python.

    words: the interpreter and its arguments (None: `sys.orig_argv`). The line of a launcher is not in them.
    """
    _, *words = sys.orig_argv if words is None else words
    while words[:1] == ["-u"]:  # of torchrun
        words = words[1:]
    if not words or words[0] == "-c":
        return None
    if words[0] == "-m" and words[1:2] in (["hybridlm_command"], ["hybridlm.cli"]):
        return shlex.join(["hybridlm", *words[2:]])
    script = Path(words[0])
    if script.name in _OURS:
        return shlex.join(["hybridlm", *words[1:]])
    return shlex.join(["python", script.name if script.is_absolute() else words[0], *words[1:]])


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


@cache
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
