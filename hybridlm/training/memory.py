"""What the memory units of a run do: how often they write, how long they hold, how many are dead.

Counted in the training forward of a step that is due, over its micro-batches and all processes, padding left out; the
sums are whole numbers, so they do not depend on how the step is dealt out. One entry for each memory cell:

    layer, cell             where it stands: index of the layer, name in the pattern
    units                   its width N
    write_share             writes / (units x tokens): the mean of z
    mean_hold               tokens from one write to the next: tokens / writes of a unit, averaged over the units that
                            wrote; null where none did
    dead_units              units that never wrote in the counted tokens
    always_writing_units    units that wrote at every one of them

mean_hold counts tokens and not completed holds, so the ends of windows and documents, which cut holds short, do not
make it smaller. What does: dead units, which hold for longer than anybody looked, are left out. A unit with only a few
writes in the step has a rough estimate, on the whole too long. A write that leaves the state as it was (a `bmru` at
epsilon = 0 that writes its own sign) is a write.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

COLUMNS = ("write_share", "mean_hold", "dead_units", "always_writing_units")
"""The entries that change from step to step."""


class MemoryStatistics:
    """`with MemoryStatistics(model) as memory`: cells count inside; `add` after each forward, before its backward.

    model: unwrapped. recording: whether cells also keep what the write penalty needs, inside and behind it.
    """

    def __init__(self, model: Any, recording: bool = False):
        self.model, self.recording = model, recording
        self._cells: list[tuple[int, str]] = []
        self._sums: Tensor | None = None

    def __enter__(self) -> "MemoryStatistics":
        self.model.record_writes(self.recording, counts=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.model.record_writes(self.recording)

    def add(self) -> None:
        """Takes the counts of the last forward."""
        found = self.model.write_counts()
        if found:
            self._cells = [(counts.layer, counts.cell) for counts in found]
            now = torch.stack([torch.cat([counts.writes, counts.positions[None]]) for counts in found])
            self._sums = now if self._sums is None else self._sums + now

    def rows(self, accelerator: Accelerator) -> list[dict[str, Any]]:
        """The entries of all cells, over all processes; every process calls it."""
        if self._sums is None:
            return []
        sums = accelerator.reduce(self._sums, reduction="sum").cpu()  # pyright: ignore[reportAttributeAccessIssue]
        return [
            {"layer": layer, "cell": cell, **statistics(counts[:-1], int(counts[-1]))}
            for (layer, cell), counts in zip(self._cells, sums, strict=True)
        ]


def statistics(writes: Tensor, tokens: int) -> dict[str, Any]:
    """writes: (N,) int64, of so many tokens for each unit."""
    wrote = writes[writes > 0].double()
    return {
        "units": len(writes),
        "write_share": int(writes.sum()) / max(1, tokens * len(writes)),
        "mean_hold": float((tokens / wrote).mean()) if len(wrote) else None,
        "dead_units": int((writes == 0).sum()),
        "always_writing_units": int((writes == tokens).sum()) if tokens else 0,
    }


def flat_statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For trackers: `LAYER.CELL/NAME` -> number; a cell that stands twice in its layer is `LAYER.CELL.1` there."""
    flat: dict[str, float] = {}
    for index, row in enumerate(rows):
        again = sum((other["layer"], other["cell"]) == (row["layer"], row["cell"]) for other in rows[:index])
        place = f"{row['layer']}.{row['cell']}" + (f".{again}" if again else "")
        flat |= {f"{place}/{name}": row[name] for name in COLUMNS if row[name] is not None}
    return flat
