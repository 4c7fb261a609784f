"""Tensors that are dealt out over the processes, in a folder that each of them writes its own part of.

    FOLDER/__RANK_0.distcp    the parts that a process holds, through torch.distributed.checkpoint
    FOLDER/.metadata          which part of which tensor lies where

Any number of processes can read it, whole tensors or parts of them, each for itself. torch reads the parts with
`weights_only=True`, but `.metadata` as a plain pickle, which could run code: here it is read by an unpickler that knows
the few classes of a description of tensors and no other, and objects that are no tensors are refused.
"""

import importlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hybridlm.safe_loading import is_inside

_DESCRIPTION = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "StorageMeta", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
}  # fmt: skip
"""What `.metadata` is made of: module -> names."""


def write_parts(folder: Path, tensors: dict[str, Tensor], group: Any) -> Exception | None:
    """Every process writes what it holds of `tensors`, which have the same names in all; ends for all once all have
    written. group: torch.distributed's, to talk through.

    Returns None, or what failed in one of them, the same in all: an OSError where a disk refused. Raises where a
    process has gone.
    """
    try:
        save(dict(tensors), storage_writer=_Writer(folder), process_group=group)
    except CheckpointException as error:
        return _first(error)
    return None


def read_names(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The tensors in the folder, their whole sizes and dtypes. Raises ValueError where it holds anything else."""
    return {
        name: (kept.size, kept.properties.dtype)
        for name, kept in _Reader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(kept, TensorStorageMetadata)
    }


def read_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fills `tensors`, whole ones or parts, with what is in the folder. Each process reads for itself.

    Raises ValueError, OSError, RuntimeError or KeyError where the folder is damaged or lacks one of them.
    """
    read_names(folder)  # here, as `load` goes on without a description that it cannot read
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")  # it is
            load(dict(tensors), storage_reader=_Reader(folder), no_dist=True)
    except CheckpointException as error:
        raise _first(error) from error


def missing_parts(folder: Path) -> list[str]:
    """Files that the description names and that are not in the folder as this process sees it."""
    files = {stored.relative_path for stored in _Reader(folder).read_metadata().storage_data.values()}
    return sorted(name for name in files if not (folder / name).is_file())


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        """Without the folder's name, which is another one once it is whole."""
        return StorageMeta(save_id=self.save_id)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises ValueError for what is no description of tensors."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                found = _Unpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(f".metadata: {error}") from error
        if not isinstance(found, Metadata):
            raise ValueError(f".metadata holds {type(found).__name__}, not what was written")
        outside = [
            stored.relative_path for stored in found.storage_data.values() if not is_inside(stored.relative_path)
        ]
        if outside:
            raise ValueError(f".metadata names {outside[0]!r}, no file of the folder")
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name not in _DESCRIPTION.get(module, ()):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which describes no tensor")
        return getattr(importlib.import_module(module), name)


def _first(error: CheckpointException) -> Exception:
    """Of what happened in several processes; what a disk refused before anything else."""
    found = [failure[0] for _, failure in sorted(error.failures.items())]
    found.sort(key=lambda one: not isinstance(one, OSError))
    return found[0] if isinstance(found[0], Exception) else RuntimeError(repr(found[0]))
