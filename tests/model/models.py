"""Small models for the tests of this folder."""

import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.mixers_hybridlm import MIXERS

VOCABULARY = 61
PATTERNS = [*sorted(MIXERS), "rglru+bmru", "(rglru bmru)*2", "lru bmru attention", "bmru+cmru+mingru attention acmru"]


def make_model(pattern, seed=0, dtype=torch.float32, **options):
    """A model in eval mode whose parts all matter: biases and thresholds off their starting values."""
    torch.manual_seed(seed)
    options = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
    } | options
    options.setdefault("eos_token_id", 0)
    model = HybridLMForCausalLM(HybridLMConfig(pattern=pattern, initializer_range=0.5, threshold_init=0.4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "nu_log" not in name and not name.endswith(".p"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def make_ids(rows, length, seed=1):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
