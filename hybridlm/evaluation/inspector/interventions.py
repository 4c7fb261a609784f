"""Changing chosen memory units while a model runs: a state flipped once, or a unit frozen.

    flip      the state that the unit brings into the next call is turned round, once: s becomes -s, in an `fqbmru`
              1 - s. What the unit does from there on is its own: the change lasts until it writes.
    freeze    the unit never writes, and keeps the state it has or one that is given.

Both are exact. A flip changes what the cell is given; a freeze changes what the cell compares, so that the cell itself
holds, as it does at any token without a write, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.units import CellUnits, locate_units, memory_units
from hybridlm.model.cells_fqbmru import FqbmruCell
from hybridlm.model.memory_hybridlm import ThresholdCell

Freezes = Mapping[str, float | None]
"""Unit, or layer -> the state that it keeps; None: the one that it has."""

_ALLOWED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "bmru": ("-1 or +1", lambda value: value in (-1, 1)),
    "fqbmru": ("0 or 1", lambda value: value in (0, 1)),
    "cmru": ("a whole number below 2^24", lambda value: value == int(value) and abs(value) < 2**24),
    "acmru": ("a finite number", lambda value: True),
}


@contextmanager
def intervene(model: nn.Module, *, flips: Iterable[str] = (), freezes: Freezes | None = None) -> Iterator[None]:
    """Inside, the units act as told, in all rows; afterwards the model is as before, also behind an error.

    flips, freezes: units as `LAYER.UNIT`, or all of a layer as `LAYER`. A flip happens in the first call of the model;
    to flip a state inside a text, read up to there with a cache, and go on from it inside. Raises UserError for units
    that there are not, a state that a unit cannot have, and a unit named twice.
    """
    changes = _changes(model, list(flips), dict(freezes or {}))
    handles: list[Any] = []
    try:
        for units, (turned, kept) in changes.items():
            handles.append(units.cell.register_forward_pre_hook(_state_hook(units, turned, kept)))
            if kept:
                handles += _silence(units.cell, list(kept))
        yield
    finally:
        for handle in handles:
            handle.remove()


_Change = tuple[list[int], dict[int, float | None]]
"""Places in a cell: those that are flipped, and those that are frozen with their states."""


def _changes(model: nn.Module, flips: list[str], freezes: dict[str, float | None]) -> dict[CellUnits, _Change]:
    cells = memory_units(model)
    changes: dict[CellUnits, _Change] = {}
    taken = set()
    wanted = [*((name, True, None) for name in flips), *((name, False, value) for name, value in freezes.items())]
    for name, turn, value in wanted:
        for units, place in locate_units(cells, name):
            if (units, place) in taken:
                raise UserError(f"unit {units.names[place]}: it is named twice. Flip it or freeze it, once.")
            taken.add((units, place))
            turned, kept = changes.setdefault(units, ([], {}))
            if turn:
                turned.append(place)
            else:
                kept[place] = _allowed(units.kind, name, value)
    return changes


def _allowed(kind: str, name: str, value: float | None) -> float | None:
    what, fits = _ALLOWED[kind]
    if value is not None and not (math.isfinite(value) and fits(value)):
        raise UserError(f"unit {name}={value:g}: the state of a {kind} is {what}.")
    return value


def _state_hook(units: CellUnits, turned: list[int], kept: dict[int, float | None]) -> Callable[..., Any]:
    """Changes the state that the cell is given: flips in the first call, frozen states in every one."""
    pending = list(turned)

    def hook(_cell: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, state, mask, reset = inputs
        if kept and reset is not None and bool(reset.any()):
            raise ValueError("a unit cannot be frozen over packed documents. Give each document a row of its own.")
        s: Tensor = state["s"].clone()
        if pending:
            s[:, pending] = 1 - s[:, pending] if units.kind == "fqbmru" else -s[:, pending]
            pending.clear()
        for place, value in kept.items():
            if value is not None:
                s[:, place] = value
        return x, {**state, "s": s}, mask, reset

    return hook


def _silence(cell: Any, places: list[int]) -> list[Any]:
    """Hooks that let units of a cell never write: |c| = 0 below a threshold of 1; a drive between two thresholds."""
    if isinstance(cell, FqbmruCell):
        maps = {cell.drive: (cell.beta_lo + cell.beta_hi) / 2}
    else:
        assert isinstance(cell, ThresholdCell), f"unknown memory cell {type(cell).__name__}"
        maps = {cell.candidate: 0.0, cell.threshold: 1.0}

    def setting(value: float) -> Callable[..., Tensor]:
        def hook(_map: Any, _inputs: Any, output: Tensor) -> Tensor:
            return output.index_fill(2, torch.tensor(places, device=output.device), value)

        return hook

    return [module.register_forward_hook(setting(value)) for module, value in maps.items()]
