"""Decode steps from many states of a model at once, each state a row of numbers.

A row is everything that the model carries from one token to the next: the states of its cells and the windows of its
convolutions, layer after layer, as float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hybridlm.model.snapshot_hybridlm import LayerSnapshot, put, take


class Stepper:
    """Steps of a model that labels tokens, in a dtype. Its layers must be recurrent ones. letters (B,) int64: those of
    the step that is being taken, or was last. decided (W,): which numbers of a row are states of cells, not of a
    convolution's window. shake: every weight is off by up to this share of it, by
    chance; by as much to the other side with minus this."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float64, shake: float = 0.0):
        self.model: Any = copy.deepcopy(model).to(dtype).eval()  # pyright: ignore[reportArgumentType]
        if shake:
            generator = torch.Generator().manual_seed(0)
            for weight in self.model.parameters():
                weight.mul_(1 + shake * torch.rand(weight.shape, dtype=dtype, generator=generator).mul_(2).sub_(1))
        self.letters = torch.empty(0, dtype=torch.int64)
        cache = self._cache()
        # A token of padding moves nothing, so what it leaves is where a text begins.
        nothing = torch.zeros(1, 1, dtype=torch.int64)
        self.model(nothing, attention_mask=nothing, past_key_values=cache, use_cache=True)
        self._layout = take(cache)
        tensors = [(name, t) for layer in self._layout for name, t in layer.tensors.items()]
        self.decided = np.concatenate([np.full(t[0].numel(), name != "conv") for name, t in tensors])

    def start(self) -> np.ndarray:
        """The row (1, W) before the first token."""
        return _pack(self._layout)

    @torch.no_grad()
    def step(self, rows: np.ndarray, letters: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """rows (B, W) float64, letters (B,) int64 to the rows that follow and the logits (B, classes) on the way."""
        cache = self._cache()
        for layer, snapshot in zip(cache.layers, self._unpack(rows), strict=True):
            put(layer, snapshot)
        self.letters = torch.from_numpy(letters)
        logits = self.model(self.letters.unsqueeze(1), past_key_values=cache, use_cache=True).logits
        return _pack(take(cache)), logits[:, 0]

    def answer(self, word: Sequence[int]) -> int:
        """The class that the model gives behind a word, in one forward over all of it."""
        return int(self.answers(torch.tensor([list(word)]))[0, -1])

    @torch.no_grad()
    def answers(self, words: Tensor) -> Tensor:
        """The classes (B, T) that it gives behind each letter of words (B, T), in one forward."""
        return self.model(words, use_cache=False).logits.argmax(-1)

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def _unpack(self, rows: np.ndarray) -> list[LayerSnapshot]:
        given, at, snapshots = torch.from_numpy(rows), 0, []
        for layer in self._layout:
            tensors = {}
            for name, like in layer.tensors.items():
                width = like[0].numel()
                tensors[name] = given[:, at : at + width].to(like.dtype).reshape(-1, *like.shape[1:])
                at += width
            snapshots.append(LayerSnapshot(layer.kind, layer.length, layer.written, tensors))
        return snapshots


def _pack(layers: list[LayerSnapshot]) -> np.ndarray:
    return torch.cat([t.double().flatten(1) for layer in layers for t in layer.tensors.values()], 1).numpy()
