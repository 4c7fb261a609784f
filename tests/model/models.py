"""Small models, for the tests of this folder and of others."""

import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.mixers_hybridlm import MIXERS

VOCABULARY = 61
PATTERNS = [
    *sorted(MIXERS),
    "rglru+bmru",
    "(rglru bmru)*2",
    "lru bmru attention",
    "bmru+cmru+mingru attention acmru",
    "mamba2 lstm+bmru sliding_attention",
]


def make_model(pattern, seed=0, dtype=torch.float32, **options):
    """A model in eval mode whose parts all matter: biases and thresholds off their starting values."""
    torch.manual_seed(seed)
    options = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "sliding_window": 7,
        "mamba_d_head": 8,
        "mamba_d_state": 6,
        "mamba_n_groups": 2,
    } | options
    options.setdefault("eos_token_id", 0)
    model = HybridLMForCausalLM(HybridLMConfig(pattern=pattern, initializer_range=0.5, threshold_init=0.4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "nu_log" not in name and not name.endswith(".p"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("dt_bias"):  # steps that write, and decays that keep: the state must weigh in the output
                parameter.normal_()
            if name.endswith("A_log"):
                parameter.normal_(mean=-2.0, std=0.5)
    return model.to(dtype).eval()


def make_ids(rows, length, seed=1):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def save_checkpoint(folder, tokenizer, pattern="rglru bmru", **options):
    """A language model with random weights and its tokenizer, as a folder that `from_pretrained` reads."""
    torch.manual_seed(0)
    special = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 4}
    HybridLMForCausalLM(HybridLMConfig(pattern=pattern, **(sizes | special | options))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
