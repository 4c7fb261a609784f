"""`generate`, where it differs from transformers': behind a cache that was handed in, and what it refuses."""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationMixin

from .cache_hybridlm import stop_recording
from .conversation_hybridlm import going_on
from .parts_hybridlm import check_generation


@dataclass
class _Behind:
    """What the cache held when assisted decoding began. text: so many tokens of the input, which is the whole text;
    columns (B, tokens): the attention mask of what is not in the input, which is new tokens alone."""

    text: int = 0
    columns: Tensor | None = None


_BEHIND: ContextVar[_Behind | None] = ContextVar("_BEHIND", default=None)
"""None but in the target of assisted decoding."""


def refuse_empty(given: Tensor) -> None:
    if given.shape[1] == 0:
        raise ValueError(f"input of shape {tuple(given.shape)} has no token; give at least one, e.g. the start symbol.")


class HybridLMGenerationMixin(GenerationMixin):
    """transformers' generation for a model whose cache may hold more, or other, tokens than the input has."""

    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """As in transformers; behind a cache that has seen as many tokens as the input has, or more, the input is the
        new tokens alone.

        A longer one is the whole text, as in transformers, unless attention_mask has a column for every token of the
        cache and of the input. Assisted decoding leaves a cache that takes no steps back.
        """
        check_generation(self.sequence_ranks)  # pyright: ignore[reportAttributeAccessIssue]
        given = inputs if inputs is not None else kwargs.get("input_ids")
        if given is not None and given.ndim == 2 and kwargs.get("inputs_embeds") is None:
            refuse_empty(given)
        own = _BEHIND.set(None)  # a draft generates inside the call of its target
        try:
            return super().generate(inputs, *args, **going_on(inputs, kwargs))  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            _BEHIND.reset(own)

    def _assisted_decoding(self, input_ids, **kwargs):
        """As in transformers, which takes the input for the whole text and begins with it: what the cache holds of it
        is left out. Of new tokens alone, mask and positions are cut to these, so that their columns count the input's
        tokens for target and draft; the columns of the past are put back in front where the target reads them."""
        cache, mask, options = kwargs.get("past_key_values"), kwargs.get("attention_mask"), kwargs["generation_config"]
        seen, length = 0 if cache is None else int(cache.get_seq_length()), input_ids.shape[1]
        behind = _Behind()
        if seen and (getattr(options, "_mask_length", -1) if mask is None else mask.shape[1]) == length:
            behind = _Behind(text=seen)
        elif seen:
            behind = _Behind(columns=None if mask is None else mask[:, :-length])
            for name in ("attention_mask", "position_ids"):
                if kwargs.get(name) is not None:
                    kwargs[name] = kwargs[name][..., -length:]
        own = _BEHIND.set(behind)
        try:
            return super()._assisted_decoding(input_ids, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            _BEHIND.reset(own)
            if cache is not None and not options.is_assistant:
                stop_recording(cache)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        """As in transformers, which keeps the places of all tokens and copies them at every step, though a step behind
        a cache reads the last one alone. (Assisted decoding counts by them.)"""
        places = model_kwargs.get("position_ids")
        if places is not None and model_kwargs.get("use_cache") and _BEHIND.get() is None:
            model_kwargs["position_ids"] = places[..., -1:]
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    # transformers looks for `inputs_embeds` in this signature before it generates from them.
    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, inputs_embeds=None, attention_mask=None, **kwargs
    ):
        behind = _BEHIND.get()
        if behind is not None and next_sequence_length is None and 0 < behind.text < input_ids.shape[1]:
            next_sequence_length = input_ids.shape[1] - behind.text
        if behind is not None and behind.columns is not None and attention_mask is not None:
            attention_mask = torch.cat([behind.columns, attention_mask], dim=1)
        return super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **kwargs,
        )

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None and model_kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size} with inputs_embeds: transformers cuts "
                "input_ids alone into chunks. Leave one of the two out."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if generation_config.assistant_early_exit is not None:
            pattern = self.config.pattern  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"assistant_early_exit={generation_config.assistant_early_exit}: the number of layers follows from the "
                f"pattern {pattern!r}, and cannot be lowered for a draft. Give an assistant_model, or "
                "prompt_lookup_num_tokens."
            )
