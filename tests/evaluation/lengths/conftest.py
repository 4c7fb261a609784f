"""A longer text, a small Llama and a small GPT-2, and sums made by hand."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

PARTS = (
    "Anne had been a very pretty girl",
    "Ce n'est pas l'été",
    "2 µm — 3 €",
    "漢字 😀",
    "her bloom had vanished early",
)


def words(parts, seed=0):
    """Sentences of `PARTS` in an order drawn by a seed."""
    order = torch.randint(len(PARTS), (parts,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ", ".join(PARTS[at] for at in order) + "."


@pytest.fixture(scope="session")
def long_text():
    """About 900 bytes, characters of one to four of them."""
    return words(40)


@pytest.fixture(scope="session")
def others(tokenizer):
    """name -> a small model that is not ours, of the same vocabulary; GPT-2 has 64 positions."""
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(2)
    llama = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0, **sizes
    )
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes)
    return {"llama": LlamaForCausalLM(llama).eval(), "gpt2": GPT2LMHeadModel(gpt2).eval()}


@pytest.fixture(scope="session")
def nats_by_hand():
    """nats_by_hand(model, tokens, span, length): of each target, in float64, from a forward of its own."""

    def nats(model, tokens, span, length):
        model, found, step = model.double(), [], length // 2
        for target in range(*span):
            start = span[0] + (target - span[0]) // step * step - (length - step)
            ids = torch.cat([tokens.ids[:1], tokens.ids[start + 1 : target + 1]])  # text token t is ids[t + 1]
            with torch.no_grad():
                logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, -1]
            found.append(-torch.log_softmax(logits, 0)[tokens.ids[target + 1]].item())
        model.float()
        return torch.tensor(found, dtype=torch.float64)

    return nats
