"""A checkpoint with random weights and a real tokenizer, small enough for every test."""

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.tokenizer import train_tokenizer

TEXT = "Anne had been a very pretty girl, but her bloom had vanished early. Ce n'est pas l'été, ça dépend: 2 µm.\n" * 6


@pytest.fixture(scope="session")
def text():
    """About 650 bytes, some characters of more than one."""
    return TEXT


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([TEXT], vocab_size=300)


@pytest.fixture(scope="session")
def build(tokenizer):
    """build(pattern, **keywords) -> a model in evaluation mode, the same weights every time."""

    def make(pattern="rglru bmru", **keywords):
        torch.manual_seed(1)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        # A wide start of the embeddings: predictions far from uniform, as those of a trained model are.
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.5}
        return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, **(sizes | special | keywords))).eval()

    return make


@pytest.fixture(scope="session")
def checkpoint(build, tokenizer, tmp_path_factory):
    """A folder that `from_pretrained` reads. Tests must not write into it: they copy it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(build):
    return build()
