"""Language models that mix fading and persistent memory.

Importing hybridlm registers its classes with transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hybridlm.model.cell_hybridlm import Cell
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.heads_hybridlm import (
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
)
from hybridlm.model.mixers_hybridlm import register_cell
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM, HybridLMModel, HybridLMPreTrainedModel

if TYPE_CHECKING:
    from hybridlm import allocator

__version__ = "0.1.0"
__all__ = [
    "Cell",
    "HybridLMConfig",
    "HybridLMForCausalLM",
    "HybridLMForQuestionAnswering",
    "HybridLMForSequenceClassification",
    "HybridLMForTokenClassification",
    "HybridLMModel",
    "HybridLMPreTrainedModel",
    "__version__",
    "allocator",
    "register_cell",
]

AutoConfig.register("hybridlm", HybridLMConfig)
AutoModel.register(HybridLMConfig, HybridLMModel)
AutoModelForCausalLM.register(HybridLMConfig, HybridLMForCausalLM)
AutoModelForSequenceClassification.register(HybridLMConfig, HybridLMForSequenceClassification)
AutoModelForTokenClassification.register(HybridLMConfig, HybridLMForTokenClassification)
AutoModelForQuestionAnswering.register(HybridLMConfig, HybridLMForQuestionAnswering)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "allocator":  # a module that nothing above imports
        return import_module("hybridlm.allocator")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
