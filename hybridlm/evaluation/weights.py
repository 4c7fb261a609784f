"""Which weights a number is of: a hash over the files that hold them. Pattern and size are those of many models."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weight_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a checkpoint's folder, by its name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def digest_of(files: dict[str, str]) -> str | None:
    """One hash over what `weight_files` found, whatever the names; None where it found nothing."""
    return hashlib.sha256(" ".join(sorted(files.values())).encode()).hexdigest() if files else None


def weights_digest(checkpoint: str | Path) -> str | None:
    """The same of a checkpoint; None where it is no local folder."""
    return digest_of(weight_files(Path(checkpoint)))
