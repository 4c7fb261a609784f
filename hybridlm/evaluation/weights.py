"""Which weights a number is of: a hash over the files that hold them. Pattern and size are those of many models."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hybridlm.files import sha256


def weight_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a checkpoint's folder, by its name."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def digest_of(files: dict[str, str]) -> str | None:
    """One hash over what `weight_files` found, whatever the names; None where it found nothing."""
    return hashlib.sha256(" ".join(sorted(files.values())).encode()).hexdigest() if files else None


def weights_digest(checkpoint: str | Path) -> str | None:
    """The same of a checkpoint; None where it is no local folder."""
    return digest_of(weight_files(Path(checkpoint)))
