"""The model of the suite: inputs, the stack that language models use, and a linear map to classes or a number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hybridlm.evaluation.memory.task import Task
from hybridlm.model.attention_hybridlm import Attention
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.modeling_hybridlm import HybridLMModel


class MemoryModel(nn.Module):
    """inputs (B, T) or (B, T, C) to (B, T, classes), or to (B, T) where the task's targets are numbers."""

    def __init__(self, task: Task, config: HybridLMConfig):
        super().__init__()
        self.numbers = task.numbers
        self.backbone = HybridLMModel(config)
        self.encoder = None if task.symbols else nn.Linear(task.inputs, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, task.outputs)

    def forward(self, inputs: Tensor, cache: DynamicCache | None = None) -> Tensor:
        given = {"input_ids": inputs} if self.encoder is None else {"inputs_embeds": self.encoder(inputs)}
        hidden = self.backbone(**given, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        answers = self.head(hidden)
        return answers.squeeze(-1) if self.numbers else answers

    def cache(self) -> DynamicCache:
        return DynamicCache(config=self.backbone.config)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def grows(self) -> bool:
        """Whether a token costs more the further it stands in a sequence."""
        return any(isinstance(module, Attention) and module.sliding_window is None for module in self.modules())
