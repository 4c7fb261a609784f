"""Which implementation of the scans runs, and why.

    reference   a loop over time, differentiated by autograd: the definition; never chosen by itself
    torch       two-level scan in pure PyTorch: every device, no compiler
    cpu         compiled C: tensors on the CPU
    triton      GPU kernels: tensors on a CUDA device

An argument `path=` forces one for a call, `using(path)` for a block of code, the environment variable HYBRIDLM_SCAN for
the process, which is looked at once, when this is imported. A path that was forced and cannot run is an error where it
would run; one that would have been chosen and cannot is passed over, with one line that says so.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from hybridlm.errors import UserError
from hybridlm.ops.errors import Unavailable
from hybridlm.ops.selfcheck import disagreement

PATHS = ("reference", "torch", "cpu", "triton")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
VARIABLE = "HYBRIDLM_SCAN"
_MODULES = {
    "torch": ("hybridlm.model.twolevel_hybridlm", "hybridlm.model.planar_hybridlm"),
    "cpu": ("hybridlm.ops.cpu.kernels",),
    "triton": ("hybridlm.ops.triton.linear", "hybridlm.ops.triton.lru", "hybridlm.ops.triton.memory"),
}
_FASTEST = {"cpu": "cpu", "cuda": "triton"}
"""Device -> the path that is tried first there."""
_OF_DEVICE = {path: device for device, path in _FASTEST.items()}

_logger = logging.getLogger("hybridlm.ops")
_from_environment = os.environ.get(VARIABLE) or None
_forced: str | None = _from_environment
"""Not checked yet: an error at import would end in the traceback of every import above it."""


@dataclass(frozen=True)
class Choice:
    """A path, and why it."""

    path: str
    why: str


def check_path(path: str | None) -> None:
    if path is not None and path not in PATHS:
        raise UserError(f"{_asking(path)}={path!r}: there is no such path; choose one of {', '.join(PATHS)}.")


def check_split(path: str) -> None:
    """Raises UserError for a path that cannot scan a part of a sequence."""
    if path == "reference":
        raise UserError(
            "path='reference': the loop over time runs in one process; a sequence that is split over several takes the "
            "other paths. Leave it out, or do not split."
        )


def check_environment() -> str | None:
    """The path that HYBRIDLM_SCAN names. Raises UserError where there is none such: for what would find it out late."""
    check_path(_from_environment)
    return _from_environment


def _asking(path: str) -> str:
    """What asks for a path, in an error: the environment variable where it could be that."""
    return VARIABLE if path == _from_environment == _forced else "path"


def forced(path: str | None = None) -> str | None:
    """The path that an argument, `using` or the environment asks for, in this order."""
    return path if path is not None else _forced


@contextmanager
def using(path: str | None) -> Iterator[None]:
    """Forces a path (None: none) for everything that runs inside, in every thread."""
    global _forced
    check_path(path)
    before, _forced = _forced, path
    try:
        yield
    finally:
        _forced = before


def choose(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, path: str | None = None) -> Choice:
    """The path for tensors on `device` in the storage dtype `dtype`.

    UserError where a path is forced that does not exist or cannot run there.
    """
    check_path(path)
    return _choose(torch.device(device).type, dtype, forced(path))


@cache
def _choose(device: str, dtype: torch.dtype, asked: str | None) -> Choice:
    if asked is not None:
        check_path(asked)
        try:
            return Choice(asked, f"{describe(asked, device, dtype)}; asked for")
        except Unavailable as error:
            name = _asking(asked)
            leave = "Unset it" if name == VARIABLE else "Leave it out"
            raise UserError(f"{name}={asked!r} cannot run here: {error}. {leave}, or take 'torch'.") from None
    fastest = _FASTEST.get(device)
    if fastest is None:
        return Choice("torch", f"{describe('torch', device, dtype)}; there are no kernels for {device} devices")
    try:
        return Choice(fastest, describe(fastest, device, dtype))
    except Unavailable as error:
        _logger.warning("scans run in pure PyTorch, which is slower: %s", error)
        return Choice("torch", f"{describe('torch', device, dtype)}; {error}")


def has_memory(x: torch.Tensor) -> bool:
    """Whether a pointer to x may be handed to a kernel.

    Not so of fake tensors, of subclasses that hold other tensors, and inside torch.func.
    """
    return type(x) is torch.Tensor and not torch._C._are_functorch_transforms_active()


def describe(path: str, device: str, dtype: torch.dtype) -> str:
    """What a path is, once it has been tried on tensors of this kind. Raises Unavailable."""
    if path == "reference":
        return "a loop over time"
    if path == "torch":
        return "two-level scan in pure PyTorch"
    if device != _OF_DEVICE[path]:
        raise Unavailable(f"it takes tensors on a {_OF_DEVICE[path]} device, these are on {device}")
    if dtype not in DTYPES:
        raise Unavailable(f"the {path} kernels take {dtype_names()}, these are {dtype}")
    if path == "cpu":
        from hybridlm.ops.cpu.library import library

        words = library().words()
    else:
        from hybridlm.ops.triton import words as triton_words

        words = triton_words()
    wrong = disagreement(kernels(path), device, dtype)
    if wrong is not None:
        raise Unavailable(f"the {path} kernels disagree with the reference on this machine: {wrong}")
    return f"{words}, checked against the reference"


@cache
def kernels(path: str) -> dict[str, Any]:
    """The six functions of a path by name: linear_forward, linear_backward, ..."""
    modules = [import_module(name) for name in _MODULES[path]]
    names = [f"{op}_{way}" for op in ("linear", "lru", "memory") for way in ("forward", "backward")]
    return {name: next(getattr(module, name) for module in modules if hasattr(module, name)) for name in names}


def explain(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, path: str | None = None) -> str:
    """One line: which path tensors on `device` in the storage dtype `dtype` take, and why.

    UserError as `choose`, and for a dtype that no scan takes.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: scans take {dtype_names()}.")
    choice = choose(device, dtype, path)
    return f"{choice.path}: {choice.why}"


def dtype_names() -> str:
    return ", ".join(map(str, DTYPES[:-1])) + f" or {DTYPES[-1]}"
