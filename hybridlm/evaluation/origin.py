"""What a checkpoint was converted from: `hybridlm convert` writes it beside the weights, for the model's card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

CONVERTED = "converted.json"


class Origin(NamedTuple):
    """A checkpoint, as it was named."""

    source: str
    on_hub: bool


def write_origin(folder: Path, origin: Origin) -> None:
    """Into the folder of the converted one."""
    (folder / CONVERTED).write_text(json.dumps(origin._asdict(), indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """That of a checkpoint which was converted; None for others."""
    try:
        said = json.loads((folder / CONVERTED).read_text(encoding="utf-8"))
        return Origin(str(said["source"]), said["on_hub"] is True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
