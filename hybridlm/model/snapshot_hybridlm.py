"""A cache as plain data and back: what copying one, writing it to a file and going on elsewhere have in common.

A snapshot holds of every layer its kind, its number of tokens, and its tensors by name: all states of a recurrent
layer and its convolution's window, or the keys and values of transformers' own attention layers. What was recorded
for taking steps back is left out, so the cache that comes of it does not record.
"""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .cache_hybridlm import HybridRecurrentLayer, HybridStaticRecurrentLayer


@dataclass
class LayerSnapshot:
    """kind: the layer's class; length: tokens it has seen; written: slots in use where the layer has a fixed number."""

    kind: str
    length: int
    written: int
    tensors: dict[str, Tensor]


def take(cache: Cache) -> list[LayerSnapshot]:
    """The layers of a cache that has seen a token. Tensors are the cache's own, not copies.

    Raises ValueError for an empty cache, and for layers of other kinds (quantized ones, or another model's).
    """
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        if type(layer) not in _KINDS:
            raise ValueError(
                f"layer {index} of the {type(cache).__name__} is a {type(layer).__name__}; a cache can be copied and "
                f"saved if its layers are of {', '.join(kind.__name__ for kind in _KINDS)}, as in DynamicCache("
                "config=model.config) and StaticCache(config=model.config, max_cache_len=...)."
            )
    if tokens_seen(cache) == 0:
        raise ValueError(f"the {type(cache).__name__} is empty: call the model with past_key_values=cache first.")
    return [_take(layer) for layer in layers]


def tokens_seen(cache: Cache) -> int:
    """How many tokens of a row have gone through the cache, padding included; 0 where it has no layers yet."""
    return int(cache.get_seq_length()) if cache.layers else 0


def fork(cache: Cache, repeats: int = 1) -> Cache:
    """A cache of the same kind with every row repeated `repeats` times, (a, b) -> (a, a, b, b), that shares no memory
    with `cache`; gradients flow back into it. Raises ValueError as `take`, and where repeats is below 1."""
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1, the number of copies of every row.")
    snapshots, twin = take(cache), copy.copy(cache)
    twin.layers = [_KINDS[type(layer)](layer) for layer in cache.layers]
    for layer, snapshot in zip(twin.layers, snapshots, strict=True):
        snapshot.tensors = {name: t.repeat_interleave(repeats, dim=0) for name, t in snapshot.tensors.items()}
        put(layer, snapshot)
    return twin


def put(layer: Any, snapshot: LayerSnapshot) -> None:
    """Fills a new layer of the snapshot's kind; an attention layer that grows keeps the snapshot's tensors."""
    tensors = dict(snapshot.tensors)
    if isinstance(layer, HybridRecurrentLayer):
        conv = tensors.pop("conv", None)
        if isinstance(layer, HybridStaticRecurrentLayer):
            layer.cumulative_length = layer.cumulative_length.to(next(iter(tensors.values())).device)
        layer._write(tensors, conv)
        layer._count(snapshot.length)
        return
    keys, values = tensors["keys"], tensors["values"]
    layer.lazy_initialization(keys, values)
    if layer.is_compileable:  # a static layer
        layer.keys[:, :, : keys.shape[2]].copy_(keys)
        layer.values[:, :, : values.shape[2]].copy_(values)
        layer.cumulative_length.fill_(snapshot.written)
        if layer.is_sliding:
            layer.cumulative_length_int = snapshot.length
    else:
        layer.keys, layer.values = keys, values
        if layer.is_sliding:
            layer.cumulative_length = snapshot.length


def static_length(cache: Cache) -> int | None:
    """`max_cache_len` of a static cache, None for one that grows; the length so far where no layer has a limit."""
    static = [layer for layer in cache.layers if isinstance(layer, (StaticLayer, HybridStaticRecurrentLayer))]
    if not static:
        return None
    return max([tokens_seen(cache), *(layer.max_cache_len for layer in static if isinstance(layer, StaticLayer))])


def _take(layer: Any) -> LayerSnapshot:
    length = int(layer.get_seq_length())
    if isinstance(layer, HybridRecurrentLayer):
        window = {} if layer.conv is None else {"conv": layer.conv}
        return LayerSnapshot(type(layer).__name__, length, length, {**layer.states, **window})
    keys, values, written = layer.keys, layer.values, length
    if isinstance(layer, DynamicSlidingWindowLayer) and layer.record_past:  # it has kept more than its window
        keys, values = (t[:, :, -layer.sliding_window + 1 :] for t in (keys, values))
    elif isinstance(layer, StaticLayer):
        written = int(layer.cumulative_length)
        if not isinstance(layer, StaticSlidingWindowLayer):
            keys, values = keys[:, :, :written], values[:, :, :written]
    return LayerSnapshot(type(layer).__name__, length, written, {"keys": keys, "values": values})


_KINDS: dict[type, Any] = {
    HybridRecurrentLayer: lambda layer: HybridRecurrentLayer(),
    HybridStaticRecurrentLayer: lambda layer: HybridStaticRecurrentLayer(),
    DynamicLayer: lambda layer: DynamicLayer(),
    DynamicSlidingWindowLayer: lambda layer: DynamicSlidingWindowLayer(layer.sliding_window),
    StaticLayer: lambda layer: StaticLayer(layer.max_cache_len),
    StaticSlidingWindowLayer: lambda layer: StaticSlidingWindowLayer(layer.max_cache_len, layer.max_cache_len),
}
"""Every kind of layer that a hybridlm cache consists of, with how an empty one of the same size is made."""
