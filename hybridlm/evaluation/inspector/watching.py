"""States and writes of memory cells, taken from every forward of a model by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hybridlm.evaluation.inspector.units import CellUnits

Keep = Callable[[int, Tensor, Tensor], None]
"""Told after every call of a cell: which one, its states (B, T, N) and its writes z (B, T, N) bool."""


@contextmanager
def watch(cells: Sequence[CellUnits], keep: Keep) -> Iterator[None]:
    """Inside, `keep` sees every call of the cells; afterwards they are as before.

    z is what the cell itself computes, as `record_writes` sees it. A watched layer runs its modules one by one also in
    a decode step, never the compiled step.
    """
    undo: list[Callable[[], None]] = []
    try:
        for index, units in enumerate(cells):
            undo += _watch_cell(units.cell, index, keep)
        yield
    finally:
        for step in reversed(undo):
            step()


def _watch_cell(cell: Any, index: int, keep: Keep) -> list[Callable[[], None]]:
    written: list[Tensor] = []
    noted, wanted = cell.note_writes, cell.notes_writes
    changed = ["note_writes", "count_writes"] if cell.count_writes else ["note_writes", "count_writes", "write_counts"]
    before = {name: cell.__dict__[name] for name in changed if name in cell.__dict__}

    def note_writes(z: Tensor, mask: Tensor | None) -> None:
        written[:] = [z > 0]
        if wanted:
            noted(z, mask)

    def hook(_cell: Any, _inputs: Any, output: Any) -> None:
        keep(index, output[1]["s"].detach(), written.pop())

    def restore() -> None:
        for name in changed:
            cell.__dict__.pop(name, None)
        cell.__dict__.update(before)

    handle = cell.register_forward_hook(hook)
    cell.note_writes, cell.count_writes = note_writes, True
    return [handle.remove, restore]
