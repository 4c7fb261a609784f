"""What of a checkpoint is read: safetensors that lie in its own folder, and no code that travels with it.

transformers alone would also read weights out of a pickle, go wherever the index of a checkpoint in shards points, and
ask at the terminal (where it takes a line of a pipe for the answer) whether to run the code in the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from hybridlm.errors import UserError

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""Keywords of every `from_pretrained`."""
SAFETENSORS: dict[str, Any] = {"use_safetensors": True}
"""Keywords of every `from_pretrained` that reads weights; `check_weights` comes first."""

FAULTS: tuple[type[Exception], ...] = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError, SafetensorError
)  # fmt: skip
"""What libraries raise where a file of a checkpoint says something else than they expect."""

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTER = ("adapter_model.bin", "adapter_model.safetensors")


def brief(error: Exception) -> str:
    """What an exception of a library says, on one line. Code in a checkpoint's folder is named as what it is: the
    library's advice is to let it run."""
    if "trust_remote_code" in str(error):
        return "it needs code that lies in its own folder, which is not run here"
    return " ".join(str(error).split())[:400] or type(error).__name__


def check_weights(source: str | Path, what: str) -> None:
    """Raises UserError, which begins with `what`, where the weights of `source`, a folder or a name on the Hub, are
    pickles, or where their index is damaged or names a file outside of the folder."""
    folder = Path(source)
    if folder.is_dir():
        _refuse_pickles(folder, what)
    index = _index(source)
    if index is None:
        return
    try:
        said = json.loads(index.read_text(encoding="utf-8"))
        names = set(said["weight_map"].values())
        said["metadata"].items()
        outside = [name for name in names if not name.endswith(".safetensors") or not is_inside(name)]
    except FAULTS as error:
        raise UserError(
            f"{what}: {index.name} is damaged ({type(error).__name__}: {error}). Copy the folder again from where it "
            "was written."
        ) from None
    if outside:
        raise UserError(
            f"{what}: {index.name} names {sorted(outside)[0]!r}; a weight must lie in a .safetensors file inside the "
            "folder. Nothing was read. Get the checkpoint from whom you trust."
        )


def is_inside(name: str) -> bool:
    """Whether a file's name, as an index or a list of checksums has it, stays inside of the folder that it is for."""
    parts = re.split(r"[/\\]", name)
    return "\0" not in name and ":" not in parts[0] and all(part not in ("", ".", "..") for part in parts)


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether what lies at `path` in the folder of a checkpoint lies elsewhere in truth, through a link. (What was
    downloaded from the Hub is a folder of links to `blobs` beside it.)"""
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return not any(path.resolve().is_relative_to(each) for each in homes)


def _index(source: str | Path) -> Path | None:
    """The index of weights in several files; None: there is none, or what there is cannot be looked at."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / SAFE_WEIGHTS_INDEX_NAME
        return path if path.is_file() and not (folder / SAFE_WEIGHTS_NAME).is_file() else None
    try:
        found = cached_file(str(source), SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # which `from_pretrained` will report
        return None
    return None if found is None else Path(found)


def _refuse_pickles(folder: Path, what: str) -> None:
    pickle, safe = _ADAPTER
    found = [pickle] if (folder / pickle).is_file() and not (folder / safe).is_file() else []
    if not _any(folder, ["*.safetensors", SAFE_WEIGHTS_INDEX_NAME]):
        found += _any(folder, _PICKLES)
    if found:
        raise UserError(
            f"{what}: its weights are in {found[0]}, a pickle, which could run code as it is read; only safetensors "
            "are. Have whoever wrote it write it again with save_pretrained, or, if you trust it, do that yourself: "
            "from_pretrained of transformers, then save_pretrained into a new folder."
        )


def _any(folder: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))
