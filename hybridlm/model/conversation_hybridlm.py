"""Conversations: a cache that is saved, loaded in another process, or forked into many.

What is restored is the same to the last bit, and `generate` goes on with the same tokens as if nothing had come
between. Without full attention in the pattern a saved cache has the same size however long the text was.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .snapshot_hybridlm import fork, take, tokens_seen
from .statefile_hybridlm import read, write


@dataclass
class Conversation:
    """A cache, and what is needed to go on from it.

    cache: as the model left it. input_ids (B, L) int64: the whole text so far, L above the tokens in the cache, if it
    is known. pending_ids (B, k) int64: the tokens that are not in the cache yet, often the last one that `generate`
    drew. attention_mask (B, tokens in the cache) int64: 0 at padding, None where there is none. notes: what the caller
    wrote down. Raises ValueError for an empty cache, for shapes and dtypes that do not fit, and for notes that are not
    text.
    """

    cache: Cache
    input_ids: Tensor | None = None
    pending_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, seen = self.rows, tokens_seen(self.cache)
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                _check_tensor(name, tensor, rows)
        _check_notes(self.notes)
        if self.input_ids is not None:
            if self.input_ids.shape[1] <= seen:
                raise ValueError(
                    f"input_ids has {self.input_ids.shape[1]} columns, the cache has seen {seen} tokens: give the "
                    "whole text, at least one token more; or only what the cache has not seen, as pending_ids."
                )
            if self.pending_ids is None:
                self.pending_ids = self.input_ids[:, seen:]
            elif not torch.equal(self.pending_ids, self.input_ids[:, seen:]):
                raise ValueError("pending_ids is not the end of input_ids behind the cache's tokens: leave one out.")
        if self.attention_mask is not None:
            past = self.attention_mask[:, :seen].long()
            self.attention_mask = torch.cat([past, past.new_ones(rows, seen - past.shape[1])], dim=1)

    @property
    def rows(self) -> int:
        return next(iter(take(self.cache)[0].tensors.values())).shape[0]

    def inputs(self, new_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments of `generate` that go on with the pending tokens, and then new_ids (B or 1, T).

        attention_mask (B or 1, T): 0 where new_ids is padding. `generate` moves the cache on; fork first to start from
        here again. Raises ValueError where there is no token to go on with, or rows or columns do not fit.
        """
        said = self.pending_ids if self.input_ids is None else self.input_ids
        parts = [ids for ids in (said, new_ids) if ids is not None and ids.shape[1]]
        if not parts:
            raise ValueError("no token is pending and new_ids is empty: give at least one token to go on with.")
        if new_ids is not None and new_ids.shape[0] not in (1, self.rows):
            raise ValueError(f"new_ids has {new_ids.shape[0]} rows, the conversation {self.rows}: give 1 or as many.")
        device = parts[0].device
        input_ids = torch.cat([ids.to(device).expand(self.rows, -1) for ids in parts], dim=1)
        seen = tokens_seen(self.cache)
        mask = input_ids.new_ones(self.rows, input_ids.shape[1] + (seen if self.input_ids is None else 0))
        if self.attention_mask is not None:
            mask[:, :seen] = self.attention_mask.to(mask)
        if attention_mask is not None:
            if new_ids is None or attention_mask.shape[1] != new_ids.shape[1]:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}: give a column for every token of "
                    "new_ids; that of the text before is known."
                )
            if new_ids.shape[1]:
                mask[:, -new_ids.shape[1] :] = attention_mask.to(mask)
        return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": self.cache}

    def fork(self, repeats: int = 1) -> "Conversation":
        """An independent copy with every row repeated; this one stays as it is."""
        rest = {name: getattr(self, name) for name in _TENSORS}
        rest = {name: None if t is None else t.repeat_interleave(repeats, dim=0) for name, t in rest.items()}
        return Conversation(fork(self.cache, repeats), **rest, notes=dict(self.notes))


_TENSORS = ("input_ids", "pending_ids", "attention_mask")


def _check_tensor(name: str, tensor: Any, rows: int) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}; give a tensor of {rows} rows, as the cache has.")
    if tensor.ndim != 2 or tensor.shape[0] != rows:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the cache has {rows} rows: give ({rows}, ...).")
    if name == "attention_mask":
        return
    if tensor.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} has dtype {tensor.dtype}; give token ids, int64.")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, no token; leave it out where there is none.")


def _check_notes(notes: Any) -> None:
    if not isinstance(notes, dict) or not all(isinstance(text, str) for pair in notes.items() for text in pair):
        raise ValueError(f"notes={notes!r}: must be a dictionary of text by names, e.g. {{'title': 'Emma'}}.")


class ConversationMixin:
    """Saving, loading and forking of caches, for the model classes."""

    def save_cache(self, cache: Cache, path: str | Path, **rest: Any) -> None:
        """Writes a DynamicCache or StaticCache of this model to one safetensors file, replacing an older one.

        rest, as in `Conversation`: input_ids, the whole text so far, or pending_ids, the tokens that the cache has not
        seen, where the text is to go on as it was; attention_mask from the first token on, where a row is padded
        (columns left out count as text); notes. Raises ValueError for an empty cache, layers of other kinds, shapes
        that do not fit, and a cache of other layers or sizes than this model's. Of two models of one shape, a cache
        does not tell which of them filled it: give that one.
        """
        talk = Conversation(cache, **rest)
        extra = {name: getattr(talk, name) for name in _TENSORS if getattr(talk, name) is not None}
        write(self, path, cache, extra, talk.notes)  # pyright: ignore[reportArgumentType]

    def load_conversation(self, path: str | Path) -> Conversation:
        """All that `save_cache` wrote, on this model's device.

        Raises FileNotFoundError; ValueError where another model wrote the file, naming what differs, or where the file
        is damaged.
        """
        cache, extra, notes = read(self, path)  # pyright: ignore[reportArgumentType]
        try:
            return Conversation(cache, **extra, notes=notes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: it holds no conversation ({error}).") from None

    def load_cache(self, path: str | Path) -> Cache:
        """The cache alone. Raises as `load_conversation`, and ValueError where the file holds more: pending tokens and
        padding would be lost."""
        talk = self.load_conversation(path)
        held = [name for name in _TENSORS if getattr(talk, name) is not None]
        if held:
            raise ValueError(
                f"{path} holds {', '.join(held)} too, without which the text would not go on from where it was. Use "
                "load_conversation(path), and its inputs(new_ids) as arguments of generate."
            )
        return talk.cache

    def fork_cache(self, cache: Cache, repeats: int = 1) -> Cache:
        """An independent copy of a cache in which every row stands `repeats` times, (a, b) -> (a, a, b, b).

        The original is untouched, so that one text, read once, can be the beginning of many answers. Raises ValueError
        for an empty cache and layers of other kinds.
        """
        return fork(cache, repeats)


def going_on(inputs: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a `generate`, where its input may be new tokens behind what `past_key_values` has seen.

    transformers takes the input for the whole text wherever the attention mask has as many columns as the input, or is
    not given. An input that is no longer than what the cache has seen cannot be that: it gets a mask that begins with
    one column of ones for every token in the cache. Raises ValueError where a cache is given but not to be used, and
    for a mask that fits neither.
    """
    cache = options.get("past_key_values")
    seen = tokens_seen(cache) if isinstance(cache, Cache) else 0
    if not seen:
        return options
    if options.get("use_cache") is False:
        raise ValueError(
            f"use_cache=False with past_key_values that hold {seen} tokens: each step would add the whole input to "
            "them again. Leave one of the two out."
        )
    input_ids, mask = inputs if inputs is not None else options.get("input_ids"), options.get("attention_mask")
    if input_ids is None or input_ids.ndim != 2:
        return options
    length = input_ids.shape[1]
    if mask is not None and mask.ndim == 2 and mask.shape[1] not in (length, seen + length):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}, and past_key_values "
            f"hold {seen} tokens: give the mask {seen} + {length} columns, or {length} for the input alone."
        )
    if length > seen:
        return options
    mask = torch.ones_like(input_ids) if mask is None else mask
    if mask.shape == input_ids.shape:
        mask = torch.cat([mask.new_ones(len(mask), seen), mask], dim=1)
    return {**options, "attention_mask": mask}
