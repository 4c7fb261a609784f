"""Language models that mix fading and persistent memory.

Importing hybridlm registers its classes with transformers' AutoConfig, AutoModel and AutoModelForCausalLM.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM, HybridLMModel, HybridLMPreTrainedModel

__version__ = "0.1.0"
__all__ = ["HybridLMConfig", "HybridLMForCausalLM", "HybridLMModel", "HybridLMPreTrainedModel", "__version__"]

AutoConfig.register("hybridlm", HybridLMConfig)
AutoModel.register(HybridLMConfig, HybridLMModel)
AutoModelForCausalLM.register(HybridLMConfig, HybridLMForCausalLM)
