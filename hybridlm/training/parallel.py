"""How the processes of a run stand to one another: who reads which rows, and which part of them.

    process        0     1     2     3          4 processes, parallel.sequence = 2
    data_rank      0     0     1     1          rows of a step are dealt out over data_world = 2 places
    part           0     1     0     1          of a row, the tokens [part T / 2, (part + 1) T / 2)

Processes that share sequences follow one another, so that a launcher puts them on one machine. Gradients are summed
over all processes, whatever each of them read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from hybridlm import HybridLMConfig
from hybridlm.errors import UserError
from hybridlm.model.parts_hybridlm import SPLITTABLE, unsplittable
from hybridlm.model.sequence_hybridlm import SequenceRanks
from hybridlm.training.sections import PretrainConfig


@dataclass(frozen=True)
class Layout:
    """The place of this process in the run."""

    world: int = 1
    """Processes."""
    rank: int = 0
    """This one, from 0."""
    parts: int = 1
    """Processes that share each sequence."""
    group: Any = None
    """torch.distributed's group of those; None where each sequence belongs to one process."""

    @property
    def data_world(self) -> int:
        """Places that read rows of their own."""
        return self.world // self.parts

    @property
    def data_rank(self) -> int:
        """The place that this process belongs to, from 0."""
        return self.rank // self.parts

    @property
    def part(self) -> int:
        """Which part of its sequences is this process's, from 0."""
        return self.rank % self.parts

    def split(self, model: Any) -> None:
        """Tells a model that processes share its sequences, where they do. Called by all of those."""
        if self.parts > 1:
            model.split_sequence(SequenceRanks(self.group))


@contextmanager
def whole_sequences(model: Any) -> Iterator[None]:
    """Inside, the model of this process takes whole sequences, whoever shares them otherwise."""
    ranks = model.sequence_ranks
    model.split_sequence(None)
    try:
        yield
    finally:
        model.split_sequence(ranks)


def data_places(config: PretrainConfig, processes: int) -> int:
    """Places that read rows of their own. Raises UserError where `processes` cannot be arranged as `config` asks."""
    parallel = config.parallel
    if processes == 1:
        return 1
    if processes % parallel.sequence:
        raise UserError(
            f"parallel.sequence={parallel.sequence}: {processes} processes cannot be dealt out over sequences that are "
            f"shared by {parallel.sequence} each. Launch a multiple of {parallel.sequence}, or lower parallel.sequence."
        )
    if parallel.sequence > 1:
        _check_split(config)
    if config.data.sequence_length % parallel.sequence:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} must be a multiple of parallel.sequence="
            f"{parallel.sequence}, the processes that share each sequence. Change either."
        )
    if parallel.shard is not None and processes % parallel.shard:
        raise UserError(
            f"parallel.shard={parallel.shard}: {processes} processes cannot be dealt out over copies of the model that "
            f"are held by {parallel.shard} each. Launch a multiple of {parallel.shard}, or change parallel.shard."
        )
    return processes // parallel.sequence


def _check_split(config: PretrainConfig) -> None:
    """Raises UserError where the sequences of this model cannot be split."""
    asked, model = f"parallel.sequence={config.parallel.sequence}", HybridLMConfig(**config.model)
    if found := unsplittable(model.block_types):
        raise UserError(
            f"{asked}: {', '.join(found)} of model.pattern={model.pattern!r} needs the whole sequence. Take a pattern "
            f"of {', '.join(SPLITTABLE)}, or set parallel.sequence=1."
        )
    if config.data.carry_state:
        raise UserError(
            f"{asked} with data.carry_state=true: a carried state enters at the first part of a sequence and leaves at "
            "the last one, which are in other processes. Set data.carry_state=false, or parallel.sequence=1."
        )
    if config.training.compile:
        raise UserError(
            f"{asked} with training.compile=true: torch.compile does not trace what passes between the processes. Set "
            "training.compile=false, or parallel.sequence=1."
        )
    part = config.data.sequence_length // config.parallel.sequence
    if part < model.conv_kernel - 1:
        raise UserError(
            f"{asked}: a part of data.sequence_length={config.data.sequence_length} is {part} tokens, fewer than the "
            f"{model.conv_kernel - 1} that a convolution of model.conv_kernel={model.conv_kernel} reaches back. Take "
            "longer sequences, or share them by fewer processes."
        )


def arrange(config: PretrainConfig, accelerator: Accelerator) -> Layout:
    """The layout of the run; called by every process at once. Raises UserError as `data_places` does."""
    world, rank = accelerator.num_processes, accelerator.process_index
    parts = world // data_places(config, world)
    group = None
    if parts > 1:
        for first in range(0, world, parts):  # every process makes every group
            ranks = list(range(first, first + parts))
            made = torch.distributed.new_group(ranks)
            group = made if rank in ranks else group
    return Layout(world, rank, parts, group)
