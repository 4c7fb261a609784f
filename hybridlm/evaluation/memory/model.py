"""The model of the suite: inputs, the stack that language models use, and a linear map to classes or a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.task import Task
from hybridlm.model.attention_hybridlm import Attention
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.modeling_hybridlm import HybridLMModel


@dataclass(frozen=True)
class Architecture:
    """The stack that a mixer is put in, the same for all of them."""

    width: int = 64
    """D, and N where a mixer has a state width."""
    layers: int = 2
    """A pattern is repeated until it has so many."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Other fields of `HybridLMConfig`."""

    def config(self, mixer: str, symbols: int) -> HybridLMConfig:
        """Raises UserError where the mixer, or a field, is not one."""
        fields = {
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_attention_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 32,
            "initializer_range": 1.0 / self.width**0.5,
            **self.fields,
        }
        try:
            unit = len(HybridLMConfig(pattern=mixer, vocab_size=symbols, **fields).block_types)
            if self.layers % unit:
                raise UserError(
                    f"layers={self.layers}: must be a multiple of the {unit} layers of the mixer {mixer!r}, "
                    "which is repeated until the stack is full."
                )
            pattern = f"({mixer})*{self.layers // unit}"
            return HybridLMConfig(pattern=pattern, vocab_size=symbols, **fields)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"mixer {mixer!r}: {error}") from None


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
    def grows(self) -> bool:
        """Whether a token costs more the further it stands in a sequence."""
        return any(isinstance(module, Attention) and module.sliding_window is None for module in self.modules())
