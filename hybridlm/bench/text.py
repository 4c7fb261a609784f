"""A text that a model reads and goes on with, by calls of the model or in `generate`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hybridlm.model.cache_hybridlm import HybridRecurrentLayer


class _Stamps:
    """What `generate` writes to: when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        tokens.cpu()  # as an application that prints does; on a GPU it waits
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class GrowingText:
    """A model and its cache, into which a text of random tokens goes."""

    def __init__(self, model: Any):
        self.model = model
        # `generate` of transformers calls it so, by the class's name, too.
        self.name = "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"
        self.cache = DynamicCache(config=model.config)
        self.last = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self.position = 0
        """Tokens that went into the cache, as far as its layers do not count them."""

    def read(self, tokens: int, chunk: int) -> None:
        """So many tokens more, `chunk` at a time, without the head: nothing is predicted while reading."""
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        for start in range(0, tokens, chunk):
            ids = torch.randint(vocabulary, (1, min(chunk, tokens - start)), device=self.model.device)
            self.model.base_model(input_ids=ids, use_cache=True, **{self.name: self.cache})
        self.position += tokens

    def fill(self, tokens: int) -> None:
        """So many tokens more in the keys and values that grow, as random numbers."""
        for layer in self.cache.layers:
            if isinstance(layer, DynamicLayer):
                _fill(layer, tokens)
        self.position += tokens

    @property
    def grows_alone(self) -> bool:
        """Whether the cache is nothing but keys and values of every token, so that `fill` leaves nothing out."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def seen(self) -> int:
        """Tokens in the cache."""
        counting = [layer for layer in self.cache.layers if isinstance(layer, (DynamicLayer, HybridRecurrentLayer))]
        return max((int(layer.get_seq_length()) for layer in counting), default=self.position)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=True, **{self.name: self.cache}).logits

    def step(self) -> None:
        """The next token, the likeliest."""
        self.last = self.forward(self.last)[:, -1:].argmax(-1)
        self.position += 1

    def generate_times(self, tokens: int) -> Sequence[float]:
        """Seconds of each token that `generate` writes behind a first one, which is not timed: it prepares there."""
        stamps = _Stamps()
        mask = torch.ones(1, self.seen() + 1, dtype=torch.long, device=self.model.device)
        self.written = self.model.generate(
            self.last, attention_mask=mask, max_new_tokens=tokens + 1, do_sample=False, streamer=stamps,
            **{self.name: self.cache},
        )  # fmt: skip
        self.position += tokens + 1
        _, *times = stamps.times  # the prompt comes before the first
        return [later - earlier for earlier, later in pairwise(times)]


def _fill(layer: DynamicLayer, tokens: int) -> None:
    assert layer.keys is not None
    shape = (*layer.keys.shape[:2], tokens, layer.keys.shape[3])
    layer.update(*(torch.randn(shape, dtype=layer.keys.dtype, device=layer.keys.device) for _ in range(2)))


def cache_bytes(cache: DynamicCache, model: nn.Module) -> int:
    """Bytes of the tensors that a model remembers a text in: in its cache or, like RecurrentGemma, in its modules."""
    held: list[Any] = [vars(layer) for layer in cache.layers]
    for module in model.modules():
        held += [value for name, value in vars(module).items() if name in ("conv1d_state", "recurrent_states")]
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in _tensors(held)}.values())


def growing_bytes(cache: DynamicCache) -> int:
    """Bytes of the layers that may grow with the text: all but those with a window."""
    layers = [vars(layer) for layer in cache.layers if not getattr(layer, "is_sliding", False)]
    return sum(tensor.nbytes for tensor in _tensors(layers))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those in a value. (No function that names itself inside another: it would keep what it found until Python looks
    for cycles.)"""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
