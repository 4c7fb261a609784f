"""The heads beside the language model: sequence classification, token classification, question answering.

Each is the stack and one linear map. They build the stack themselves, instead of through AutoModel as transformers'
generic heads do, so that they also load from a folder that carries its own code.
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .cell_hybridlm import starting
from .configuration_hybridlm import HybridLMConfig
from .modeling_hybridlm import HybridLMModel, HybridLMPreTrainedModel


class HybridLMForSequenceClassification(HybridLMPreTrainedModel):
    """One label (or `num_labels` numbers) for a whole text, read from its last token that is not padding."""

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.model = HybridLMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        head = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.score = starting(head, std=config.initializer_range)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """Inputs as in `HybridLMModel.forward`. Logits (B, num_labels).

        The padding is what attention_mask says, on either side; without a mask, tokens equal to `pad_token_id` at the
        right end; with neither, nothing is padding. labels: (B,) int64 classes; (B,) or (B, num_labels) floats, as
        `config.problem_type` says, or as transformers finds from `num_labels` and the labels' dtype.
        num_items_in_batch: how many labels the batch has, of which this call may be a part; divides the summed loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state
        last = _last_token(states, input_ids, attention_mask, self.config.pad_token_id)
        rows = torch.arange(states.shape[0], device=states.device)
        logits = self.score(self.dropout(states[rows, last]))
        loss = None if labels is None else self._loss(logits, labels, kwargs.get("num_items_in_batch"))
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        loss = self.loss_function(
            logits=logits, labels=labels, pooled_logits=logits, config=self.config, num_items_in_batch=items
        )
        if items is None or self.config.problem_type == "single_label_classification":
            return loss
        # transformers takes the mean of the other two kinds, whatever the number of items. Trainer, which gives it,
        # does not count -100, so that is not counted here either.
        here = (labels != -100).sum().to(loss.device)
        return loss * (here / torch.as_tensor(items, device=loss.device).clamp_min(1))


class HybridLMForTokenClassification(HybridLMPreTrainedModel):
    """One label for every token."""

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.model = HybridLMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = starting(nn.Linear(config.hidden_size, self.num_labels), std=config.initializer_range)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Inputs as in `HybridLMModel.forward`. Logits (B, T, num_labels). labels (B, T) int64, -100 is ignored: give
        it to padding, and to tokens without a label. num_items_in_batch: how many labels the batch has, of which this
        call may be a part; divides the summed loss."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=items)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HybridLMForQuestionAnswering(HybridLMPreTrainedModel):
    """Where the answer to a question begins and ends in a text. A token sees only what stands before it, so the
    question goes in front of the text."""

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.model = HybridLMModel(config)
        self.qa_outputs = starting(nn.Linear(config.hidden_size, 2), std=config.initializer_range)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Inputs as in `HybridLMModel.forward`. start_logits, end_logits (B, T), the lowest number of their dtype at
        padding, which so is never chosen. start_positions, end_positions (B,) int64: the answer's first and last token;
        one on padding or behind the last column is ignored. The loss is NaN, without a gradient, where no start or no
        end is left. num_items_in_batch: how many answers the batch has, of which this call may be a part; divides the
        summed loss."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.qa_outputs(outputs.last_hidden_state)
        positions = (start_positions, end_positions)
        if attention_mask is not None:
            padding = attention_mask[:, -logits.shape[1] :].to(logits.device) == 0
            logits = logits.masked_fill(padding.unsqueeze(2), torch.finfo(logits.dtype).min)
            positions = tuple(None if at is None else _off_padding(at, padding) for at in positions)
        start, end = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(start, end, *positions, num_items_in_batch=items)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _off_padding(positions: Tensor, padding: Tensor) -> Tensor:
    """positions (B,), those at padding (B, T) moved behind the last column, where the loss ignores them."""
    length = padding.shape[1]
    column = positions.reshape(-1, 1).to(padding.device)
    return column.masked_fill(padding.gather(1, column.clamp(0, length - 1)), length).squeeze(1)


def _last_token(states: Tensor, input_ids: Tensor | None, mask: Tensor | None, pad: int | None) -> Tensor:
    """Index (B,) of each row's last token that is not padding; 0 in a row of padding alone."""
    rows, length = states.shape[:2]
    if mask is not None:
        valid = mask[:, -length:] != 0
    elif input_ids is not None and pad is not None:
        valid = input_ids != pad
    else:
        return torch.full((rows,), length - 1, device=states.device)
    return (torch.arange(length, device=states.device) * valid.to(states.device)).argmax(1)
