"""What the memory recurrent units share: the share of units that write; candidate and threshold.

    c_t = W_c x_t + b_c          candidate (drive)
    beta_t = |W_beta x_t + b_beta|    threshold
    z_t = H(|c_t| - beta_t)      1 = write, 0 = hold

De Geeter, Lambrechts, Ernst, Drion, *Parallelizable memory recurrent units*, arXiv 2601.09495.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cell_hybridlm import Cell, starting, wide
from .surrogate_hybridlm import heaviside


class WriteCounts(NamedTuple):
    """How often the units of one cell wrote in one forward."""

    layer: int
    cell: str
    """Its name in the pattern."""
    writes: Tensor
    """(N,) int64: at how many tokens each unit wrote."""
    positions: Tensor
    """Scalar, int64: at how many tokens it could have, padding left out."""


class MemoryCell(Cell):
    """A cell that writes or holds. `record_writes` keeps the mean of z of each row of the last forward, with its
    gradient, for a penalty; `count_writes` each unit's writes, without one. What a backward runs again under gradient
    checkpointing is not kept: its graph would hold the recomputed layer until the next forward."""

    epsilon: float

    def __init__(self, config):
        super().__init__(config)
        self.slope = float(config.surrogate_slope)
        self.record_writes = False
        self.write_share: Tensor | None = None
        """(B,)."""
        self.count_writes = False
        self.write_counts: tuple[Tensor, Tensor] | None = None

    @property
    def notes_writes(self) -> bool:
        """Whether the forward calls `note_writes`."""
        return self.record_writes or self.count_writes

    def note_writes(self, z: Tensor, mask: Tensor | None) -> None:
        """z (B, T, N), 1 where a unit writes; padding does not count."""
        if self.record_writes:
            share = _row_means(z, mask)  # computed again too: checkpointing expects the same
            if not _in_backward():
                self.write_share = share
        if self.count_writes and not _in_backward():
            valid = torch.ones_like(z[..., 0], dtype=torch.bool) if mask is None else mask
            self.write_counts = ((z > 0) & valid.unsqueeze(2)).sum((0, 1)), valid.sum()


def _row_means(z: Tensor, mask: Tensor | None) -> Tensor:
    """(B,): the mean over the tokens and units of each row; 0 where a row is all padding."""
    if mask is None:
        return z.mean((1, 2))
    return (z * mask.unsqueeze(2)).sum((1, 2)) / (mask.sum(1).clamp_min(1) * z.shape[2])


def _in_backward() -> bool:
    """Whether autograd is at work in this thread, so that a forward is one of gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ThresholdCell(MemoryCell):
    """A memory cell that compares a candidate with a threshold, both read from the input."""

    def __init__(self, config):
        super().__init__(config)
        self.candidate = nn.Linear(self.width, self.width)
        self.threshold = starting(nn.Linear(self.width, self.width), bias=config.threshold_init)

    def drive(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """c and beta, (B, T, N) each, fp32."""
        c, beta = wide(self.candidate(x)), wide(self.threshold(x)).abs()
        if self.notes_writes:
            self.note_writes(heaviside(c.abs() - beta, self.slope), mask)
        return c, beta
