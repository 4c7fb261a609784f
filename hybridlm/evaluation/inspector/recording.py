"""What the memory units of a model did over a text: sign of the state and write bit at every token, packed.

The model reads the text in calls of a fixed number of tokens with its cache, so that memory grows by what is kept
alone: two bits a unit and token, three where a state can be 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.units import CellUnits, memory_units
from hybridlm.evaluation.inspector.watching import watch
from hybridlm.evaluation.reading import Progress

CALL = 1024
"""Tokens that go through the model in one call; a multiple of 8, since a call's bits are packed by themselves."""
AT_ONCE = 256
"""Units that are unpacked together."""

Bits = np.ndarray
"""(units, ceil(tokens / 8)) uint8: one bit a token, the first one highest."""


@dataclass
class Recording:
    """positive: s > 0; zero: s = 0, None where no state ever was (as in `bmru`); writes: z = 1. start (units,) int8:
    the signs before the first token."""

    cells: list[CellUnits]
    tokens: int
    positive: Bits
    zero: Bits | None
    writes: Bits
    start: np.ndarray

    @property
    def names(self) -> list[str]:
        return [name for cell in self.cells for name in cell.names]

    @property
    def kinds(self) -> list[str]:
        return [cell.kind for cell in self.cells for _ in range(cell.width)]

    def signs(self, part: slice = slice(None)) -> np.ndarray:
        """(units of the part, tokens) int8 in {-1, 0, +1}."""
        signs = 2 * unpack(self.positive[part], self.tokens).astype(np.int8) - 1
        return signs if self.zero is None else signs * ~unpack(self.zero[part], self.tokens)

    def written(self, part: slice = slice(None)) -> np.ndarray:
        """(units of the part, tokens) bool."""
        return unpack(self.writes[part], self.tokens)

    def parts(self) -> Iterator[slice]:
        """The units in groups that are small enough to unpack."""
        return (slice(first, first + AT_ONCE) for first in range(0, len(self.positive), AT_ONCE))


def unpack(bits: Bits, tokens: int) -> np.ndarray:
    """(units, tokens) bool."""
    return np.unpackbits(bits, axis=1, count=tokens).view(bool)


@dataclass
class _Planes:
    """The bits of one cell so far, call by call."""

    positive: list[Bits] = field(default_factory=list)
    zero: list[Bits] = field(default_factory=list)
    writes: list[Bits] = field(default_factory=list)


@torch.no_grad()
def record(model: PreTrainedModel, ids: Sequence[int], *, progress: Progress | None = None) -> Recording:
    """Runs a hybridlm model over tokens, which begin a document. Raises UserError for a model without memory units, and
    for states that are no numbers."""
    cells = memory_units(model)
    planes = [_Planes() for _ in cells]

    def keep(index: int, s: Tensor, z: Tensor) -> None:
        if not bool(s.isfinite().all()):
            raise UserError(
                f"layer {cells[index].layer}: states are not finite in {model.dtype}. Give dtype float32, or a "
                "checkpoint that was trained to the end."
            )
        for plane, bits in ((planes[index].positive, s > 0), (planes[index].zero, s == 0), (planes[index].writes, z)):
            plane.append(np.packbits(bits[0].T.cpu().numpy(), axis=1))

    start = [cell.cell.initial_state(1, model.device)["s"][0].sign().to(torch.int8).cpu().numpy() for cell in cells]
    stack: Any = model.base_model
    cache = DynamicCache(config=model.config)
    with watch(cells, keep):
        for first in range(0, len(ids), CALL):
            chunk = torch.tensor([list(ids[first : first + CALL])], device=model.device)
            stack(input_ids=chunk, past_key_values=cache, use_cache=True)
            if progress is not None:
                read = first + chunk.shape[1]
                progress(read, read / len(ids))
    positive, zero, writes = (
        np.concatenate([np.concatenate(getattr(each, name), axis=1) for each in planes])
        for name in ("positive", "zero", "writes")
    )
    return Recording(cells, len(ids), positive, zero if zero.any() else None, writes, np.concatenate(start))
