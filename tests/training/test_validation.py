"""Validation: nats of the text's own tokens at epsilon = 0, and nothing left changed; samples likewise."""

import math

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.loader import Windows
from hybridlm.data.shards import TokenShards
from hybridlm.training.parallel import Layout
from hybridlm.training.samples import write_samples
from hybridlm.training.sections import SamplesConfig
from hybridlm.training.session import accelerator_session
from hybridlm.training.validation import evaluating, validate


@pytest.fixture
def shards(data_folder) -> TokenShards:
    return TokenShards(data_folder, "validation")


@pytest.fixture
def model(shards) -> HybridLMForCausalLM:
    torch.manual_seed(0)
    end = shards.tokenizer.eos_token_id
    config = HybridLMConfig(
        pattern="bmru rglru", vocab_size=shards.vocab_size, hidden_size=16, num_attention_heads=2, eos_token_id=end
    )
    model = HybridLMForCausalLM(config).train()
    model.set_epsilon(0.5)
    return model


def nats_by_hand(model, windows, count: int) -> tuple[float, int]:
    """One window, one token at a time."""
    nats, tokens = 0.0, 0
    for index in range(count):
        sample = {name: torch.as_tensor(value)[None] for name, value in windows.sample(index).items()}
        logits = model(sample["input_ids"], position_ids=sample["position_ids"], use_cache=False).logits.double()
        for place, target in enumerate(sample["shift_labels"][0].tolist()):
            if target != -100:
                nats -= float(logits[0, place].log_softmax(-1)[target])
                tokens += 1
    return nats, tokens


@pytest.mark.parametrize("max_windows", [5, None])
def test_bits_per_byte_by_hand(shards, model, recipe, max_windows):
    windows = Windows(shards, 16, seed=0, shuffle=False, text_only=True)
    with accelerator_session(recipe()) as accelerator:
        found = validate(accelerator, model, windows, batch_size=4, max_windows=max_windows, layout=Layout())
    count = max_windows or windows.per_epoch
    with evaluating(model), torch.no_grad():
        nats, tokens = nats_by_hand(model, windows, count)
    assert (found["n_tokens"], found["windows"], found["n_bytes"]) == (tokens, count, windows.n_bytes(count))
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["n_bytes"], rel=1e-5)
    if max_windows is None:
        assert found["n_bytes"] == shards.n_bytes
        assert found["n_tokens"] == shards.n_tokens - shards.n_documents  # every token of the text, no start symbol


def test_mode_and_epsilon_come_back(model):
    with evaluating(model):
        assert not model.training
        assert model.epsilon == 0.0
    assert model.training
    assert model.epsilon == 0.5
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert (model.training, model.epsilon) == (True, 0.5)


def test_a_model_without_annealed_layers():
    config = HybridLMConfig(pattern="rglru", vocab_size=10, hidden_size=16, num_attention_heads=2)
    model = HybridLMForCausalLM(config)
    with evaluating(model):
        assert model.epsilon is None


def test_samples_are_a_function_of_weights_prompt_and_seed(shards, model):
    config = SamplesConfig(prompts=["The sea", ""], max_new_tokens=6, temperature=1.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    texts = write_samples(model, shards.tokenizer, config, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.epsilon) == (True, 0.5)
    torch.manual_seed(2)
    assert write_samples(model, shards.tokenizer, config, seed=3) == texts
    assert write_samples(model, shards.tokenizer, config, seed=4) != texts
    assert texts[0].startswith("The sea")
    greedy = SamplesConfig(prompts=["The sea"], max_new_tokens=6, temperature=0.0)
    assert write_samples(model, shards.tokenizer, greedy, seed=3) == write_samples(
        model, shards.tokenizer, greedy, seed=4
    )
