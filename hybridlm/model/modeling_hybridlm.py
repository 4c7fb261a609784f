"""HybridLMModel and HybridLMForCausalLM: embedding, the blocks of the pattern, norm, logits.

Start of the weights, all in one place (`_init_weights`):

    embedding, untied output projection     normal, standard deviation initializer_range
    linear maps                             normal, 1 / sqrt(fan in) (LeCun); biases 0
    maps back into the residual stream      the same / sqrt(2 * layers): mixers' out_proj and o_proj, MLP's down_proj
    norms                                   1
    maps marked by `starting`               as it says (thresholds, amplitudes, B and C of `lru`)
    convolutions, cells                     their own `reset_weights`

Packed rows: `position_ids` that restart at 0 mark where documents begin; states, convolution windows and attention
begin anew there.
"""

import math
from collections.abc import Iterator
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import TransformersKwargs, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_hybridlm import Attention, HybridLMRotaryEmbedding
from .block_hybridlm import HybridLMDecoderLayer, RecurrentMixer
from .cache_hybridlm import layered, may_look, padding_mask
from .cell_hybridlm import RECURRENT_LAYER, start_linear_, starting
from .cells_nfsm import NfsmCell
from .code_hybridlm import CarriesCode
from .configuration_hybridlm import HybridLMConfig
from .conversation_hybridlm import ConversationMixin
from .fused_hybridlm import RMSNorm
from .generation_hybridlm import HybridLMGenerationMixin, refuse_empty
from .loss_hybridlm import IGNORED, CausalLMOutputWithZLoss, can_do_without, squared_log_z, without_logits
from .masks_hybridlm import CAUSAL_MASKS, causal_masks, check_mask, document_starts
from .memory_hybridlm import MemoryCell, WriteCounts
from .parts_hybridlm import SplitsSequences, check_labels, check_part
from .scan_hybridlm import scan_path


class HybridLMPreTrainedModel(  # pyright: ignore[reportIncompatibleVariableOverride]
    ConversationMixin, CarriesCode, SplitsSequences, PreTrainedModel
):
    """What both classes share: the start of the weights, and the training states epsilon and exploration."""

    config: HybridLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridLMDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _is_stateful = False
    _can_record_outputs = {"hidden_states": HybridLMDecoderLayer, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "reset_weights"):
            module.reset_weights()  # pyright: ignore[reportCallIssue]
        elif isinstance(module, nn.Linear):
            start_linear_(module)
        else:
            super()._init_weights(module)

    def _memory_cells(self) -> Iterator[MemoryCell]:
        return (module for module in self.modules() if isinstance(module, MemoryCell))

    @property
    def epsilon(self) -> float | None:
        """epsilon of the annealed (`bmru`) layers; None where the pattern has none."""
        return next((float(cell.epsilon) for cell in self._memory_cells() if cell.anneals), None)

    def set_epsilon(self, value: float) -> None:
        """Sets epsilon, in [0, 1], of every annealed layer. Training state: neither saved with the weights nor
        loaded."""
        if not 0 <= value <= 1:
            raise ValueError(f"epsilon={value}: must be in [0, 1]; 0 is bistable, 1 cumulative.")
        for cell in self._memory_cells():
            if cell.anneals:
                cell.epsilon = float(value)

    def _exploring_cells(self) -> Iterator[NfsmCell]:
        return (module for module in self.modules() if isinstance(module, NfsmCell))

    @property
    def exploration(self) -> float | None:
        """Scale of the noise on the transitions of `nfsm` layers; None where the pattern has none."""
        return next((float(cell.exploration) for cell in self._exploring_cells()), None)

    def set_exploration(self, scale: float) -> None:
        """Sets it in every `nfsm` layer: 1 as published, 0 for none. Training state, as epsilon is."""
        if not 0 <= scale < math.inf:
            raise ValueError(f"exploration={scale}: must be at least 0 and finite; 1 is as published, 0 no noise.")
        for cell in self._exploring_cells():
            cell.exploration = float(scale)

    @property
    def scan_path(self) -> str | None:
        """Which implementation the recurrences run through, and why; None for a stack of attention alone."""
        return scan_path(self.device, torch.float32) if RECURRENT_LAYER in self.config.layer_types else None

    def record_writes(self, record: bool = True, *, counts: bool = False) -> None:
        """Whether memory cells keep the mean of z, the share of units that write, in each row of their last forward,
        for `write_penalty`; and with `counts`, how often each unit wrote, for `write_counts`."""
        for cell in self._memory_cells():
            cell.record_writes, cell.count_writes = record, counts
            cell.write_share = cell.write_counts = None

    def write_penalty(self) -> Tensor | None:
        """(mean z)^2 of each row, averaged over rows and memory cells of the last forward: a scalar with a gradient;
        None where nothing was recorded. Row by row, so that it does not matter in how many parts a batch is run."""
        shares = [cell.write_share for cell in self._memory_cells() if cell.write_share is not None]
        if not shares:
            return None
        means, ranks = torch.stack(shares), self.sequence_ranks
        return (means if ranks is None else ranks.mean(means)).square().mean()

    def write_counts(self) -> list[WriteCounts]:
        """How often each memory unit wrote in the last forward, cell by cell; empty where nothing was counted."""
        found = []
        for module in self.modules():
            if isinstance(module, HybridLMDecoderLayer) and isinstance(module.mixer, RecurrentMixer):
                names = self.config.block_types[module.layer_idx].split("+")
                for name, cell in zip(names, module.mixer.cells, strict=True):
                    if isinstance(cell, MemoryCell) and cell.write_counts is not None:
                        found.append(WriteCounts(module.layer_idx, name, *cell.write_counts))
        return found


class HybridLMModel(HybridLMPreTrainedModel):
    """The stack without a head: token ids to hidden states."""

    needs_whole_sequences = False

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        # No padding_idx: a pad token is often the start or end symbol too, whose embedding must learn.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [HybridLMDecoderLayer(config, block, i) for i, block in enumerate(config.block_types)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = None
        if set(config.layer_types) & set(CAUSAL_MASKS):
            self.rotary_emb = HybridLMRotaryEmbedding(config)  # pyright: ignore[reportArgumentType]
        self.gradient_checkpointing = False
        self.layer_types = tuple(config.layer_types)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T) int64, or inputs_embeds (B, T, D).

        attention_mask (B, past + T): 0 at padding, anywhere in a row; states hold there. position_ids (B or 1, T): 0
        begins a document. past_key_values: a DynamicCache or StaticCache made from this config; moved on in place.
        """
        if kwargs and may_look():
            _refuse_typos(kwargs)
        ranks = self.sequence_ranks
        if ranks is not None:
            check_part(ranks, attention_mask, past_key_values, use_cache)
            attention_mask = None  # it hides nothing, and does not show that other parts stand before this one
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        rows, length = inputs_embeds.shape[:2]
        fresh = past_key_values is None
        if fresh and use_cache:
            past_key_values = DynamicCache(config=self.config)
        elif past_key_values is not None:
            past_key_values = layered(past_key_values, self.config, self.layer_types, rows, length)

        seen = 0 if fresh or past_key_values is None else past_key_values.get_seq_length()
        told = not isinstance(attention_mask, dict)
        if isinstance(attention_mask, dict):  # made by `generate`, one mask for each kind of layer
            mask, columns = attention_mask.get(RECURRENT_LAYER), None
        else:
            if attention_mask is not None and may_look() and RECURRENT_LAYER in self.layer_types:
                check_mask(attention_mask, int(seen) + length)
            mask, columns = padding_mask(attention_mask, length), attention_mask
        reset = None
        if position_ids is not None and (told or RECURRENT_LAYER in self.layer_types):  # else padding is not known
            before = seen if ranks is None else ranks.rank  # a part behind the first one has a history
            # A learned s_0 has a gradient, if of 0, in each call of a training: several processes wait for it.
            always = not fresh and self.training and self.config.learn_initial_state
            reset = document_starts(position_ids.expand(rows, length), mask, columns, before, always)
        masks = position_embeddings = None
        if self.rotary_emb is not None:
            if position_ids is not None and reset is not None and not fresh and may_look():
                # A dict of masks does not show the past: what begins behind a token of this very call is certain.
                sure = reset if told else document_starts(position_ids.expand(rows, length), mask, None, 0)
                if sure is not None and bool(sure.any()):
                    raise ValueError(_PACKED_CACHE)
            if position_ids is None:
                position_ids = (torch.arange(length, device=inputs_embeds.device) + seen).unsqueeze(0)
            # A cache that was made just now is empty: without it, transformers finds packed documents in position_ids.
            cache = None if fresh else past_key_values
            given = inputs_embeds, attention_mask, cache, position_ids, reset
            masks, flash = causal_masks(self.config, self.layer_types, *given)
            kwargs = {**flash, **kwargs}
            position_embeddings = self.rotary_emb(inputs_embeds, position_ids)

        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                causal_masks=masks,
                mask=mask,
                reset=reset,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        refuse_empty(given)
        if input_ids is None:
            return given
        if input_ids.device.type == "cpu" and may_look():
            low, high = (int(extreme) for extreme in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids holds {low if low < 0 else high}; token ids must be in [0, vocab_size) = [0, "
                    f"{self.config.vocab_size}). "
                    "Use the tokenizer that belongs to the checkpoint."
                )
        return self.embed_tokens(input_ids)


def _refuse_typos(keywords: dict) -> None:
    """transformers hands keywords through a model; one that nobody knows and that looks like one of ours is a typo."""
    for name in set(keywords) - _PASSED_THROUGH:
        close = get_close_matches(name, _OURS, n=1, cutoff=0.75)
        if close:
            raise ValueError(f"forward() has no argument {name!r}; did you mean {close[0]!r}?")


_PASSED_THROUGH = {*TransformersKwargs.__annotations__, "shift_labels", "return_dict"}
_OURS = (
    "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "shift_labels",
    "use_cache", "logits_to_keep", "num_items_in_batch", "z_loss", "output_hidden_states", "output_attentions",
)  # fmt: skip
_PACKED_CACHE = (
    "position_ids begin a new document in a row that has a cache: attention layers cannot separate it from what the "
    "cache holds. "
    "Pass packed rows without past_key_values, or begin the document with an empty cache."
)


class HybridLMForCausalLM(HybridLMPreTrainedModel, HybridLMGenerationMixin):
    """The language model: next-token logits, loss, and `generate` from a state of constant size."""

    needs_whole_sequences = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.model = HybridLMModel(config)
        self.vocab_size = config.vocab_size
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head = starting(head, std=config.initializer_range)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        keep_logits: bool = True,
        z_loss: float = 0.0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Inputs as in `HybridLMModel.forward`.

        labels (B, T): shifted inside; or shift_labels (B, T): already shifted. -100 is ignored. num_items_in_batch
        divides the summed loss. logits_to_keep: the last so many positions only, or the positions of an index tensor.
        Logits (B, T or fewer, V). keep_logits=False, in training: the loss alone, and logits None, which saves their
        memory and most of their time. z_loss: weight of the mean of (log Z)^2 in the loss, Z the softmax's normaliser;
        above 0 the output also has `cross_entropy` and `z_loss`, the two terms.
        """
        check_labels(self.sequence_ranks, labels)
        if kwargs.get("shift_labels") is not None:
            kwargs["shift_labels"] = kwargs["shift_labels"].contiguous()  # transformers wants it, a part of rows is not
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden, logits, loss, terms = outputs.last_hidden_state, None, None, {}
        wanted = labels is not None or kwargs.get("shift_labels") is not None
        if not keep_logits and (not wanted or not isinstance(logits_to_keep, int) or logits_to_keep):
            raise ValueError(
                f"keep_logits=False, logits_to_keep={logits_to_keep}: it leaves the loss over all positions alone. "
                "Give labels or shift_labels and no logits_to_keep, or leave keep_logits out."
            )
        if z_loss < 0 or (z_loss and not wanted):
            raise ValueError(f"z_loss={z_loss}: a weight of at least 0, with labels or shift_labels.")
        options = kwargs.get("shift_labels"), kwargs.get("num_items_in_batch")
        if not keep_logits and can_do_without(self.lm_head, self.loss_function, kwargs):
            loss, *parts = without_logits(hidden, self.lm_head, labels, *options, z_loss)
        else:
            logits, parts = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep)), ()
            if wanted:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if z_loss and loss is not None:
                squares = squared_log_z(logits, labels, *options, kwargs.get("ignore_index", IGNORED))
                loss, parts = loss + z_loss * squares, (loss.detach(), squares.detach())
        if z_loss:
            terms = dict(zip(("cross_entropy", "z_loss"), parts, strict=True))
        return (CausalLMOutputWithZLoss if z_loss else CausalLMOutputWithPast)(
            loss=loss,
            logits=logits if keep_logits else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **terms,
        )
