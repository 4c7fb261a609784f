"""Flips are counted: none without rounding, some where a threshold is put on the edge."""

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.evaluation.flips import count_flips


def make(pattern):
    torch.manual_seed(0)
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, hidden_size=16, num_attention_heads=2, vocab_size=20))


def test_no_flip_in_double_precision():
    found = count_flips(make("rglru bmru").double(), torch.randint(20, (2, 40)))
    assert found["flipped"] == 0
    assert found["states"] == 2 * 40 * 16
    assert found["logits"] < 1e-9


def test_a_flip_is_seen():
    """The same states but for those of a unit that writes with one sign in the one view and the other in the other."""
    model = make("bmru")
    cell = model.model.layers[0].mixer.cells[0]
    plain = cell.drive

    def other_in_steps(x, mask):
        c, beta = plain(x, mask)
        if x.shape[1] == 1:
            c, beta = c.clone(), beta.clone()
            c[..., 3], beta[..., 3] = 5.0, 0.0
        else:
            c, beta = c.clone(), beta.clone()
            c[..., 3], beta[..., 3] = -5.0, 0.0
        return c, beta

    cell.drive = other_in_steps
    assert count_flips(model, torch.randint(20, (1, 30)))["flipped"] == pytest.approx(1 / 16)


def test_a_model_without_bistable_units():
    with pytest.raises(UserError, match="no bmru layer"):
        count_flips(make("cmru lru"), torch.randint(20, (1, 5)))
