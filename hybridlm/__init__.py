"""Language models that mix fading and persistent memory.

Importing hybridlm registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.heads_hybridlm import (
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
)
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM, HybridLMModel, HybridLMPreTrainedModel

__version__ = "0.1.0"
__all__ = [
    "HybridLMConfig",
    "HybridLMForCausalLM",
    "HybridLMForQuestionAnswering",
    "HybridLMForSequenceClassification",
    "HybridLMForTokenClassification",
    "HybridLMModel",
    "HybridLMPreTrainedModel",
    "__version__",
]

AutoConfig.register("hybridlm", HybridLMConfig)
AutoModel.register(HybridLMConfig, HybridLMModel)
AutoModelForCausalLM.register(HybridLMConfig, HybridLMForCausalLM)
AutoModelForSequenceClassification.register(HybridLMConfig, HybridLMForSequenceClassification)
AutoModelForTokenClassification.register(HybridLMConfig, HybridLMForTokenClassification)
AutoModelForQuestionAnswering.register(HybridLMConfig, HybridLMForQuestionAnswering)
