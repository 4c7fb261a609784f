"""States that are carried from batch to batch (`data.carry_state`): truncated backpropagation through time.

Row r of a step goes on where row r of the step before stopped (lanes, `data.loader`), from the states and convolution
windows that it left behind. They are detached: gradients end at the window's edge, the state does not. Where a document
begins at the edge, position_ids are 0 there and the model resets the row by itself.

While epsilon is above 0, `bmru` counts, over a lane without bound: until then nothing is carried, and every window
begins at the reset state.

A step reads what the step before left, however often it is run (`diagnosis` runs a failed one again), and `move_on`
ends it. Each process has the states of its own rows, micro-batch by micro-batch; a checkpoint has those of all rows in
their order, so that any number of processes, and micro-batches of any size, go on from it.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from hybridlm import HybridLMConfig
from hybridlm.model.cache_hybridlm import take_over
from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.model.snapshot_hybridlm import LayerSnapshot, put, take
from hybridlm.training.sections import PretrainConfig

Rows = list[dict[str, Tensor]]
"""For each layer, its states and its convolution's window by name, (B, ...) each."""
SHORT_LANE = 16
"""Sequences of a lane below which it matters that a lane begins anew."""


class CarriedStates:
    """Of the rows that one process trains on, of which `micro_batches` forwards take as many rows each; reset at
    first."""

    def __init__(self, config: HybridLMConfig, micro_batches: int):
        self._config = config
        self._now: list[Rows | None] = [None] * micro_batches
        self._next: list[Rows | None] = [None] * micro_batches

    def cache(self, index: int) -> Cache:
        """A cache over what micro-batch `index` of the step goes on from, in memory of its own."""
        cache = DynamicCache(config=self._config)
        take_over(cache)
        held = self._now[index]
        if held is not None:
            for layer, tensors in zip(cache.layers, held, strict=True):
                copies = {name: tensor.clone() for name, tensor in tensors.items()}
                put(layer, LayerSnapshot(type(layer).__name__, 1, 1, copies))  # 1 token: that there was one is enough
        return cache

    def leave(self, index: int, cache: Cache) -> None:
        """Takes what the micro-batch left in its cache, for the next step. Copies: a state is a part of all the states
        of its window, which would live as long."""
        self._next[index] = [
            {name: tensor.detach().clone() for name, tensor in layer.tensors.items()} for layer in take(cache)
        ]

    def move_on(self) -> None:
        """The step is taken: what it left is what the next one goes on from."""
        self._now, self._next = self._next, [None] * len(self._now)

    def gathered(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """`layers.N.NAME`: the tensors of all rows of a step in their order, (batch_size, ...), on the CPU; none where
        nothing is carried yet, and but in the main process. Every process calls it."""
        found, parts = {}, [layers for layers in self._now if layers is not None]
        for index, layer in enumerate(parts[0] if parts else []):
            for name in layer:
                mine = torch.cat([layers[index][name] for layers in parts])
                everyone: Tensor = accelerator.gather(mine)  # pyright: ignore[reportAssignmentType]
                if accelerator.is_main_process:
                    found[f"layers.{index}.{name}"] = everyone.cpu().contiguous()
        return found

    def load(self, path: Path, device: torch.device, batch_size: int, place: int, places: int) -> None:
        """Takes the rows of place `place` of `places` from a safetensors file of what `gathered` gave. Raises
        ValueError where it holds anything else, and what safetensors raises."""
        share = batch_size // places
        layers: Rows = [{} for _ in self._config.block_types]
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  not a dict
                _, index, name = key.split(".", 2)
                rows = file.get_slice(key)
                if rows.get_shape()[0] != batch_size:
                    raise ValueError(f"{key} has {rows.get_shape()[0]} rows, a step has {batch_size}")
                layers[int(index)][name] = rows[place * share : (place + 1) * share].to(device)
        if not any(layers):  # nothing was carried yet
            return
        if not all(layers):
            raise ValueError("it lacks the states of a layer")
        size = share // len(self._now)
        self._now = [
            [{name: tensor[at : at + size].clone() for name, tensor in tensors.items()} for tensors in layers]
            for at in range(0, share, size)
        ]


def what_is_carried(config: PretrainConfig) -> str:
    """What becomes of the states at the end of a batch, for whoever reads what a run will be or is; empty where they
    are reset."""
    if not config.data.carry_state:
        return ""
    names = [name for block in HybridLMConfig(**config.model).block_types for name in block.split("+")]
    counts = config.epsilon.start and any(getattr(MIXERS[name], "anneals", False) for name in names)
    words = f"carried from batch to batch, {config.training.batch_size:,} lanes" + ", once epsilon is 0" * bool(counts)
    share = config.data.carry_restart
    return words + (f"; {share:.3g} of the sequences begin anew" if share else "")


def short_lanes(config: PretrainConfig, per_epoch: int, document: float) -> str:
    """What is wrong with more lanes than the data has use for, and what to do; empty where that is not so.

    per_epoch: sequences in an epoch. document: tokens of the mean document.
    """
    batch, length = config.training.batch_size, config.data.sequence_length
    sequences = per_epoch // batch
    if not config.data.carry_state or (
        sequences > 1 and not (sequences < SHORT_LANE and sequences * length < document)
    ):
        return ""
    lost = (
        "no state is carried at all" if sequences == 1 else "documents are cut where a lane ends, and states with them"
    )
    return (
        f"An epoch has {batch:,} lanes of {sequences} sequence{'s' * (sequences > 1)} ({sequences * length:,} tokens), "
        f"and the mean document {document:,.0f} tokens: {lost}. Lower training.batch_size, or take more text."
    )
