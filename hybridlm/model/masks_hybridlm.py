"""Which tokens may see one another: where documents of a packed row begin, and the masks of attention.

A document begins where position_ids are 0 behind a token that is not padding. Without an attention mask, transformers
finds documents itself, but with one it does not look; then the masks here keep them apart. Flash attention takes no
mask: it is given the documents' lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from .cache_hybridlm import may_look
from .cell_hybridlm import FULL_ATTENTION, SLIDING_ATTENTION

CAUSAL_MASKS = {FULL_ATTENTION: create_causal_mask, SLIDING_ATTENTION: create_sliding_window_causal_mask}


def check_mask(attention_mask: Tensor, columns: int) -> None:
    if attention_mask.ndim != 2 or attention_mask.shape[1] != columns:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; recurrent layers need (B, {columns}), and "
            "packed rows too: one column for every token in the cache and in this call, 0 where it is padding."
        )


def document_starts(
    position_ids: Tensor, mask: Tensor | None, columns: Tensor | None, seen, always: bool = False
) -> Tensor | None:
    """True where a document begins behind another one, (B, T); None where there is no such place (asked on CPU, where
    it is free, and not with `always`).

    A position 0 with nothing but padding before it changes nothing: the state is still s_0 there. mask: this call's
    padding, (B, T); columns: the attention mask of the past too, (B, past + T), where it is known; seen: tokens in the
    cache.
    """
    length = position_ids.shape[1]
    if mask is None and (columns is None or columns.ndim != 2):
        history = torch.arange(length, device=position_ids.device) + seen > 0
    elif columns is not None and columns.ndim == 2:
        valid = columns.long()
        history = (valid.cumsum(1) - valid)[:, -length:] > 0
    else:
        assert mask is not None
        valid = mask.long()
        history = (valid.cumsum(1) - valid > 0) | (torch.as_tensor(seen, device=mask.device) > 0)
    starts = (position_ids == 0) & history
    if mask is not None:
        starts = starts & mask
    if starts.device.type == "cpu" and may_look() and not always and not bool(starts.any()):
        return None
    return starts


def causal_masks(
    config,
    layer_types: Sequence[str],
    inputs_embeds: Tensor,
    attention_mask: Tensor | dict | None,
    cache: Cache | None,
    position_ids: Tensor,
    starts: Tensor | None,
) -> tuple[dict, dict[str, Any]]:
    """The mask for each kind of attention layer that the stack has, and further arguments of its attention function.

    attention_mask: as `forward` has it, a dict if the masks are made already; starts (B, T): of `document_starts`.
    Raises ValueError where flash attention is to keep documents apart in padded rows.
    """
    if isinstance(attention_mask, dict):
        return attention_mask, {}
    options: dict[str, Any] = {"position_ids": position_ids}
    flash: dict[str, Any] = {}
    if cache is None and starts is not None and is_flash_attention_requested(config):
        flash = _flash_documents(starts, attention_mask, config)
    elif cache is None and starts is not None and attention_mask is not None and _any(starts):
        check_mask(attention_mask, starts.shape[1])
        documents = starts.long().cumsum(1)
        options["and_mask_function"] = lambda row, head, query, key: documents[row, query] == documents[row, key]
    shared = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "past_key_values": cache, **options}
    return {kind: make(config=config, **shared) for kind, make in CAUSAL_MASKS.items() if kind in layer_types}, flash


def _any(starts: Tensor) -> bool:
    return not may_look() or bool(starts.any())


def _flash_documents(starts: Tensor, attention_mask: Tensor | None, config) -> dict[str, Any]:
    """The rows behind one another as one, and the lengths of the documents in it."""
    if not bool(starts.any()):
        return {}
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            f"position_ids begin documents in padded rows, which {config._attn_implementation!r} cannot separate. Set "
            "attn_implementation to 'sdpa', 'flex_attention' or 'eager', or leave the padding and its mask out."
        )
    first = torch.arange(starts.shape[1], device=starts.device) == 0
    ends = F.pad((starts | first).flatten().nonzero().flatten(), (0, 1), value=starts.numel()).int()
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
