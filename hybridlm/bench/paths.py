"""Through which path the scans of a benchmark's models ran: one that was forced is named wherever the figures go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybridlm.bench.peers import OURS
from hybridlm.errors import UserError
from hybridlm.ops.dispatch import VARIABLE, check_environment, choose, forced


def check(names: Sequence[str], device: torch.device) -> None:
    """Raises UserError where models of this package are among the names and the path that is forced cannot run."""
    if any(name in OURS for name in names):
        choose(device)


def check_free() -> None:
    """Raises UserError where a path is forced, for what compares paths by itself."""
    path = forced()
    if path is not None:
        variable = check_environment()
        what = f"{VARIABLE}={variable!r}" if variable else f"ops.using({path!r})"
        raise UserError(f"{what}: this compares the kernels with pure PyTorch by itself. Run it without.")


def facts(model: Any) -> dict[str, Any]:
    """Of a model of this package, in the process that it runs in: which path and why, and the one that was forced. Of
    another model nothing."""
    words = getattr(model, "scan_path", None)
    return {} if words is None else {"scans": words, "forced": forced()}


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's facts that `facts` gave."""
    return {name: found[name] for name in ("scans", "forced") if name in found}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which path ran, a line for each."""
    models: dict[str, list[str]] = {}
    for row in rows:
        if row.get("scans"):
            models.setdefault(row["scans"], []).append(row["model"])
    return [f"scans of {', '.join(dict.fromkeys(names))}: {words}" for words, names in models.items()]


def forced_in(entry: Mapping[str, Any]) -> str:
    """Words for a caption, empty where no path was forced."""
    found = dict.fromkeys(row["forced"] for row in entry["rows"] if row.get("forced"))
    return f"; **the scans forced to the path {', '.join(f'`{path}`' for path in found)}**" if found else ""
