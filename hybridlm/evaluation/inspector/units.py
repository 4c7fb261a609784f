"""Names of memory units: LAYER.UNIT, both from 0, as in "3.17".

The units of memory cells that stand side by side in one layer are numbered through, in the order of the pattern. Units
of `bmru`, `cmru`, `acmru` and `fqbmru` are memory units; other cells have none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hybridlm.errors import UserError
from hybridlm.model.block_hybridlm import RecurrentMixer
from hybridlm.model.memory_hybridlm import MemoryCell

_NAME = re.compile(r"(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class CellUnits:
    """The units of one memory cell. kind: its name in the pattern. first: the number of its first unit in the layer."""

    layer: int
    kind: str
    first: int
    cell: MemoryCell

    @property
    def width(self) -> int:
        return self.cell.width

    @property
    def names(self) -> list[str]:
        return [f"{self.layer}.{self.first + unit}" for unit in range(self.width)]


def memory_units(model: nn.Module) -> list[CellUnits]:
    """The memory cells of a hybridlm model in the order of their layers. Raises UserError where there is none."""
    config: Any = getattr(model, "config", None)
    found = []
    for module in model.modules():
        if isinstance(module, RecurrentMixer):
            first, kinds = 0, config.block_types[module.layer_idx].split("+")
            for kind, cell in zip(kinds, module.cells, strict=True):
                if isinstance(cell, MemoryCell):
                    found.append(CellUnits(module.layer_idx, kind, first, cell))
                    first += cell.width
    if not found:
        pattern = getattr(config, "pattern", None)
        what = f"pattern={pattern!r}" if pattern else f"model_type={getattr(config, 'model_type', None)!r}"
        raise UserError(
            f"{what}: the model has no memory unit to look at. Give a checkpoint of hybridlm with bmru, cmru, acmru or "
            "fqbmru in its pattern."
        )
    return found


def locate_units(cells: Sequence[CellUnits], name: str) -> list[tuple[CellUnits, int]]:
    """The units of a name, as their cells and places in them: one of LAYER.UNIT, all of a layer of LAYER. Raises
    UserError for a name that no unit has."""
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise UserError(
            f"unit {name!r}: not of the form LAYER.UNIT. Give a name such as {cells[0].names[0]}, or {cells[0].layer} "
            "for all units of that layer."
        )
    layer, unit = int(match[1]), match[2] and int(match[2])
    found = [
        (cell, place)
        for cell in cells
        if cell.layer == layer
        for place in range(cell.width)
        if unit is None or cell.first + place == unit
    ]
    if not found:
        there = "; ".join(f"{cell.names[0]} to {cell.names[-1]} ({cell.kind})" for cell in cells)
        raise UserError(f"unit {name.strip()}: there is none of that name. Memory units of this model: {there}.")
    return found
