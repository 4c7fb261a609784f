"""The cache of a recurrent layer: its states and its convolution window, of constant size, whatever the cells are.

transformers' own layer for linear attention is only read once its convolution has been written, and keeps one state of
the model's dtype; ours keeps any number of named states (fp32, or uint8 of `nfsm`), with or without a convolution. It
counts tokens, so that caches of attention-free models know their length, and it can take steps back (`crop`), which
assisted decoding needs.

Importing this module makes the layer known to transformers under `RECURRENT_LAYER`, for DynamicCache and StaticCache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    STATIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
)
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

from .cell_hybridlm import RECURRENT_LAYER, SLIDING_ATTENTION, State
from .conv_hybridlm import Window
from .shapes_hybridlm import without_values
from .stepwise_hybridlm import exporting

Replay = Callable[[State, int], State]
"""(states before a call, tokens of it that are kept) -> the states after those."""


@dataclass
class _Record:
    """One call while recording: its length, what was there before it, and how to find the states inside it."""

    length: int
    before: State
    conv_before: Tensor | None
    window: Window | None
    replay: Replay


class HybridRecurrentLayer(LinearAttentionCacheLayerMixin, CacheLayerMixin):
    """States {name: (B, ...)}, fp32 where a cell does not say otherwise, and `conv`, the last inputs of the convolution
    (B, K-1, N)."""

    _layer_type = RECURRENT_LAYER
    is_compileable = True
    is_sliding = False
    supports_early_init = False
    fixed_addresses = False

    def __init__(self, **kwargs):
        self.keys = self.values = None  # read by DynamicCache.__iter__
        self.is_initialized = False
        self.states: State = {}
        self.conv: Tensor | None = None
        self.cumulative_length = torch.tensor(0)  # a tensor, so that no traced graph holds it as a constant
        self.record_past = False
        self._past: list[_Record] = []

    @property
    def has_previous_state(self) -> dict[int, bool]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {0: self.is_initialized}

    @property
    def batch_size(self) -> int:
        return next(iter(self.states.values())).shape[0] if self.is_initialized else -1

    def append(self, length: int, last: State, window: Window | None, replay: Replay | None = None) -> None:
        """Takes the states after `length` new tokens, {name: (B, ...)}, and the convolution's window over them.

        replay: needed while the past is recorded.
        """
        if self.record_past:
            assert replay is not None, "a recording layer needs a way to find the states inside the call again"
            before = {name: state.clone() for name, state in self.states.items()} if self.is_initialized else {}
            conv_before = self.conv.clone() if before and self.conv is not None else None
            self._past.append(_Record(length, before, conv_before, window, replay))
        if exporting():
            self._check_dtypes(last)
        self._write(last, window and window.tail())
        self._count(length)

    def in_place(self, dtype: torch.dtype) -> bool:
        """Whether a decode step in this storage dtype can write to the tensors that are held, whoever computes it."""
        if not self.is_initialized or self.record_past:
            return False
        state = torch.float64 if dtype == torch.float64 else torch.float32
        if any(held.dtype not in (state, torch.uint8) for held in self.states.values()):
            return False
        if self.conv is not None and self.conv.dtype != dtype:
            return False
        return all(t.device.type == "cpu" and t.is_contiguous() and _writable(t) for t in self._tensors())

    def count(self, tokens: int) -> None:
        """Tokens that were read while states and window were written in place, by what autograd does not see."""
        if not torch.is_inference_mode_enabled():
            torch.autograd.graph.increment_version(self._tensors())
        self._count(tokens)

    def _check_dtypes(self, states: State) -> None:
        """transformers' exporters cast a cache to the model's dtype, which the states of a next step would not have."""
        for name, state in states.items():
            held = self.states.get(name, state).dtype
            if held != state.dtype:
                raise ValueError(
                    f"past_key_values holds the state {name!r} as {held}; recurrences run in {state.dtype}, and an "
                    "exported step must take what it returns. Export a model in float32 (model.float()), or without "
                    "transformers' exporters, which cast the cache."
                )

    def _count(self, tokens: int | Tensor) -> None:
        self.cumulative_length = self.cumulative_length + tokens

    def _write(self, states: State, conv: Tensor | None) -> None:
        # Never in place under autograd; and an exported step does not change the cache that it is given.
        if torch.is_grad_enabled() or (exporting() and not self.fixed_addresses):
            self.states, self.conv = dict(states), conv
        elif not self._takes(states):
            self.states = {name: state.clone() for name, state in states.items()}
            self.conv = None if conv is None else conv.clone()
            self._mark_static()
        else:  # same storage, which CUDA graphs need
            for name, state in states.items():
                self.states[name].copy_(state)
            if self.conv is not None and conv is not None:
                self.conv.copy_(conv)
        self.is_initialized = True

    def _takes(self, states: State) -> bool:
        """Whether the tensors that are held can be written to."""
        held, new = ({name: state.shape for name, state in each.items()} for each in (self.states, states))
        return held == new and all(_writable(tensor) for tensor in self._tensors())

    def _mark_static(self) -> None:
        """Only the static layer promises addresses."""

    def _tensors(self) -> list[Tensor]:
        return [*self.states.values(), *([] if self.conv is None else [self.conv])]

    def _apply(self, change) -> None:
        self.states = {name: change(state) for name, state in self.states.items()}
        self.conv = None if self.conv is None else change(self.conv)

    def _rearrange(self, change) -> None:
        self._apply(change)
        self._past = []  # of rows that stood in another order

    # What transformers asks of a layer

    def activate_past_recording(self) -> None:
        self.record_past = True

    @property
    def is_croppable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.record_past

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last -tokens_to_remove tokens of those recorded since the last crop; 0 drops the record."""
        count = -int(tokens_to_remove)
        if count < 0:
            raise ValueError(f"tokens_to_remove={tokens_to_remove}: give minus the number of tokens, or 0.")
        recorded = sum(record.length for record in self._past)
        if count > recorded:
            advice = "" if self.record_past else " Call activate_past_recording() on the cache before the forward."
            raise ValueError(
                f"tokens_to_remove={tokens_to_remove}: {recorded} tokens were recorded since the last crop, or since "
                f"rows were reordered, repeated or selected.{advice}"
            )
        while count:
            record = self._past.pop()
            back = min(count, record.length)
            self._restore(record, back)
            self._count(-back)
            count -= back
        self._past = []

    def _restore(self, record: _Record, back: int) -> None:
        """The state `back` tokens before the end of a recorded call."""
        if back < record.length:
            states = record.replay(record.before, record.length - back)
            self._write(states, record.window and record.window.tail(back))
        elif record.before:
            self._write(record.before, record.conv_before)
        else:
            self.is_initialized = False

    def get_seq_length(self) -> Any:
        """Tokens seen: an int, or a tensor while a graph is traced."""
        return int(self.cumulative_length) if may_look() else self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """As new: no state, no tokens."""
        self.states, self.conv, self._past, self.is_initialized = {}, None, [], False
        self.cumulative_length = self.cumulative_length * 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rearrange(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rearrange(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rearrange(lambda t: t[indices.to(t.device)])

    def offload(self) -> None:
        self._apply(lambda t: t.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """A state is small: the next call moves it where it is needed."""

    def lazy_initialization(self, *args, **kwargs) -> None:
        raise RuntimeError(
            "A recurrent layer of hybridlm is filled by append(), with the states that its cells computed."
        )

    update = update_conv_state = update_recurrent_state = lazy_initialization  # pyright: ignore[reportAssignmentType]


class HybridStaticRecurrentLayer(HybridRecurrentLayer):
    """The same with fixed addresses, and the length as a tensor: one compiled graph serves every decode step."""

    _layer_type = None
    fixed_addresses = True

    def append(self, length: int, last: State, window: Window | None, replay: Replay | None = None) -> None:
        if not self.is_initialized:
            self.cumulative_length = self.cumulative_length.to(next(iter(last.values())).device)
        super().append(length, last, window, replay)

    def _count(self, tokens: int | Tensor) -> None:
        if not _writable(self.cumulative_length):
            self.cumulative_length = self.cumulative_length.clone()
            self._mark_static()
        self.cumulative_length += tokens

    def get_seq_length(self) -> Tensor:
        return self.cumulative_length

    def _mark_static(self) -> None:
        if may_look():
            for tensor in [*self._tensors(), self.cumulative_length]:
                torch._dynamo.mark_static_address(tensor)

    def reset(self) -> None:
        """Empty, at the same addresses."""
        self._past, self.is_initialized = [], False
        self._count(-self.cumulative_length)


def _writable(tensor: Tensor) -> bool:
    """Not where a gradient needs it or what it is a part of, nor where `torch.inference_mode` made it and is left."""
    if not may_look():
        return True
    sealed = tensor.is_inference() and not torch.is_inference_mode_enabled()
    return not (sealed or tensor.requires_grad or tensor._is_view())


def may_look() -> bool:
    """Whether values may decide what is computed: not while a graph is being traced, nor where there are none."""
    return not torch.compiler.is_compiling() and not without_values()


def stop_recording(cache: Cache) -> None:
    """Ends what `activate_past_recording` began, and drops what was kept for it."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if getattr(layer, "record_past", False):
            if layer.is_initialized:
                layer.crop(0)
            layer.record_past = False


def padding_mask(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """The last `length` columns of a 2-D attention mask as bool (B, T), False at padding; None where nothing is padded.

    Also for a single step, which transformers' own function takes for valid always.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    mask = attention_mask[:, -length:].bool()
    if may_look() and bool(mask.all()):
        return None
    return mask.contiguous()


def _mask_for_generate(config, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs) -> Tensor | None:
    return padding_mask(attention_mask, inputs_embeds.shape[1])


def layered(cache: Cache, config, layer_types: Sequence[str], rows: int, length: int) -> Cache:
    """`cache`, checked for a call of (rows, length) tokens; a DynamicCache made without a config gets its layers."""
    if not cache.layers and isinstance(cache, DynamicCache):
        cache.layers, cache.layer_class_to_replicate = DynamicCache(config=config).layers, None
    if may_look():
        take_over(cache)
    kinds = [
        (isinstance(layer, HybridRecurrentLayer), bool(getattr(layer, "is_sliding", False))) for layer in cache.layers
    ]
    if kinds != [(kind == RECURRENT_LAYER, kind == SLIDING_ATTENTION) for kind in layer_types]:
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} whose layers do not fit the pattern {config.pattern!r}. "
            "Make it with DynamicCache(config=model.config) or StaticCache(config=model.config, max_cache_len=...)."
        )
    layers: list[Any] = cache.layers
    for layer in layers:
        held = layer.batch_size if isinstance(layer, HybridRecurrentLayer) else _rows(layer)
        if held not in (-1, rows):
            raise ValueError(f"past_key_values holds {held} rows, the input has {rows}; a cache serves one batch.")
        room = -1 if _forgets(layer, config) else layer.get_max_length()
        if may_look() and room > 0 and int(layer.get_seq_length()) + length > room:
            raise ValueError(
                f"past_key_values is full: {int(layer.get_seq_length())} tokens are in it, {length} come, and its "
                f"attention layers hold {room}. Make the StaticCache with a larger max_cache_len."
            )
    return cache


def _forgets(layer: Any, config) -> bool:
    """Whether an attention layer drops what leaves its window, so that it is never full."""
    return layer.is_sliding and layer.get_max_length() >= config.sliding_window


def _rows(layer: Any) -> int:
    return -1 if not layer.is_initialized or layer.keys is None or not layer.keys.numel() else layer.keys.shape[0]


def take_over(cache: Cache) -> None:
    """Makes empty layers of another copy of this code ours. Every checkpoint that carries the code brings a copy, and
    transformers' caches get the layers of the copy that was imported last."""
    ours = {kind.__name__: kind for kind in (HybridRecurrentLayer, HybridStaticRecurrentLayer)}
    layers: list[Any] = cache.layers
    for i, layer in enumerate(layers):
        kind = ours.get(type(layer).__name__)
        if kind is not None and not isinstance(layer, kind) and not layer.is_initialized:
            layers[i] = kind()
            layers[i].record_past = layer.record_past


STATIC_LAYER_TYPE_MAPPING[RECURRENT_LAYER] = HybridStaticRecurrentLayer
LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[RECURRENT_LAYER] = _mask_for_generate
