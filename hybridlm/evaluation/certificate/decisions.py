"""What latching cells decide at every step, and how clearly: watched by hooks while a model runs.

The margin of a decision is how far the numbers that it compares lie apart: |c| - beta, and c of a write, for `bmru`;
the distance of the drive from the nearer threshold for `fqbmru`; the lead of the best destination for `nfsm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybridlm.evaluation.certificate.stepping import Stepper
from hybridlm.evaluation.inspector.units import CellUnits, memory_units
from hybridlm.model.cells_bmru import BmruCell
from hybridlm.model.cells_fqbmru import FqbmruCell
from hybridlm.model.cells_nfsm import NfsmCell

SET, RESET, HOLD = range(3)
WATCHED = BmruCell, FqbmruCell, NfsmCell
"""Cells whose decisions are."""


@dataclass
class Latches:
    """The units of one memory cell. counts (letters, 3, N) int64: how often each letter set, reset and held each unit,
    once for every state of the model in which that letter was taken. held (letters, 2, N): how often it held what was
    reset, and what was set."""

    units: CellUnits
    counts: np.ndarray
    held: np.ndarray


@dataclass
class Decisions:
    """margin: the smallest so far."""

    stepper: Stepper
    latches: list[Latches]
    margin: float = np.inf

    def note(self, margin: float) -> None:
        """One that is no number is none."""
        self.margin = min(self.margin, 0.0 if np.isnan(margin) else margin)


@contextmanager
def watching(stepper: Stepper, letters: int) -> Iterator[Decisions]:
    """Inside, every step adds to what is returned. letters: how many there are."""
    model: nn.Module = stepper.model
    has_units = any(isinstance(module, (BmruCell, FqbmruCell)) for module in model.modules())
    units = [each for each in memory_units(model) if each.cell.finite] if has_units else []
    latches = [
        Latches(each, *(np.zeros((letters, actions, each.width), dtype=np.int64) for actions in (3, 2)))
        for each in units
    ]
    found = Decisions(stepper, latches)
    handles = [each.units.cell.register_forward_hook(partial(_note_units, found, each)) for each in latches]
    handles += [
        module.register_forward_hook(partial(_note_heads, found))
        for module in model.modules()
        if isinstance(module, NfsmCell)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _note_units(found: Decisions, latches: Latches, cell: Any, inputs: tuple[Any, ...], _output: Any) -> None:
    set_, reset, margin = _bistable(cell, inputs[0][:, 0])
    found.note(margin)
    hold, up = ~(set_ | reset), inputs[1]["s"] > 0
    for counts, seen in ((latches.counts, (set_, reset, hold)), (latches.held, (hold & ~up, hold & up))):
        for action, units in enumerate(seen):
            more = torch.zeros(counts.shape[0], units.shape[1], dtype=torch.int64)
            counts[:, action] += more.index_add_(0, found.stepper.letters, units.long()).numpy()


def _bistable(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Which units are set and which reset, (B, N) bool each, and the smallest margin; x (B, N)."""
    if isinstance(cell, FqbmruCell):
        u = torch.relu(cell.drive(x))
        margin = torch.minimum((u - cell.beta_lo).abs(), (u - cell.beta_hi).abs())
        return u > cell.beta_hi, u < cell.beta_lo, float(margin.min())
    c, beta = cell.drive(x.unsqueeze(1), None)
    c, over = c[:, 0], (c.abs() - beta)[:, 0]
    written = over >= 0
    margin = torch.where(written, torch.minimum(over, c.abs()), -over)
    return written & (c >= 0), written & (c < 0), float(margin.min())


def _note_heads(found: Decisions, cell: Any, inputs: tuple[Any, ...], _output: Any) -> None:
    x, state = inputs[:2]
    theta = cell.transition(x[:, 0]).unflatten(-1, cell.transition_bias.shape) + cell.transition_bias
    row = theta.take_along_dim(state["s"].long()[:, :, None, None], 2).squeeze(2)
    if row.shape[-1] > 1:
        best = row.topk(2, dim=-1).values
        found.note(float((best[..., 0] - best[..., 1]).min()))
