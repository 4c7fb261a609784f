"""Flips are counted: none without rounding, some where a threshold or a choice is put on the edge."""

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


def test_no_flip_of_heads_in_double_precision():
    found = count_flips(make("nfsm nfsm").double(), torch.randint(20, (2, 40)))
    assert found["flipped"] == 0
    assert found["states"] == 2 * 2 * 40 * 8
    assert found["logits"] < 1e-9


def test_a_head_that_flips_once_stays_apart_until_its_states_meet():
    """Destinations 0 and 1 lie within a rounding of each other at token 4, and at 20 all sources go to 2: every state
    between differs, none outside."""
    model = make("nfsm")
    cell = model.model.layers[0].mixer.cells[0]
    plain, now = cell.transition.forward, []

    def with_an_edge(x):
        theta = torch.eye(8).flatten().repeat(8).expand(*x.shape[:2], -1).clone()
        first = len(now) if x.shape[1] == 1 else 0
        now.extend([1] * (x.shape[1] == 1))
        for t in range(x.shape[1]):
            if first + t == 4:
                theta[:, t, :2] = torch.tensor([1.0, 1 + 1e-7 * (1 if x.shape[1] == 1 else -1)])
            if first + t == 20:
                theta[:, t].view(8, 8, 8)[0, :, 2] = 9.0
        return theta + 0 * plain(x)[..., :1]

    cell.transition.forward = with_an_edge
    assert count_flips(model, torch.randint(20, (1, 30)))["flipped"] == pytest.approx(16 / (30 * 8))


def test_a_model_without_bistable_units():
    with pytest.raises(UserError, match="no bmru or nfsm layer"):
        count_flips(make("cmru lru"), torch.randint(20, (1, 5)))
