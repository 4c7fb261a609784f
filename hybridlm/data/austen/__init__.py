"""Two novels by Jane Austen that travel with the package, so that the first run needs no download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["LANGUAGE", "LICENSE", "austen_paths"]

LANGUAGE = "en"
LICENSE = "public domain"


def austen_paths() -> list[Path]:
    """Paths of the two novels (ASCII text), in order of name: Northanger Abbey, Persuasion."""
    folder = files(__name__)
    return [Path(str(folder / name)) for name in ("northanger_abbey.txt", "persuasion.txt")]
