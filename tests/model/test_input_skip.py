"""`input_skip`: what stands in front of the cells passes beside them, scaled for each channel."""

import pytest
import torch
from models import make_ids, make_model
from torch.nn import functional as F
from transformers import DynamicCache

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.recurrence_hybridlm import convolve
from hybridlm.training.optimizer import parameter_groups

STACKS = ["rglru bmru", "lru+bmru attention", "gru nfsm mamba2", "mingru+cmru sliding_attention"]


@torch.no_grad()
def test_it_equals_its_equation():
    model = make_model("rglru+bmru", dtype=torch.float64, input_skip=True)
    mixer, u = model.model.layers[0].mixer, torch.randn(2, 9, 32, dtype=torch.float64)
    v, _ = convolve(mixer.conv, mixer.in_proj(u), None, None, None)
    h = sum(cell(v, cell.initial_state(2, u.device), None, None)[0] for cell in mixer.cells)
    want = mixer.out_proj((h + mixer.skip * v) * F.silu(mixer.gate_proj(u)))
    assert torch.allclose(mixer(u, None, None, None), want, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(mixer.out_proj(h * F.silu(mixer.gate_proj(u))), want, atol=0.1)


def test_it_starts_at_one_learns_and_is_not_decayed():
    model = HybridLMForCausalLM(HybridLMConfig(pattern="bmru rglru", vocab_size=61, hidden_size=32, input_skip=True))
    skips = [layer.mixer.skip for layer in model.model.layers]
    assert all(torch.equal(skip, torch.ones(32)) for skip in skips)
    model(make_ids(2, 8), labels=make_ids(2, 8)).loss.backward()
    assert all(skip.grad.abs().min() > 0 for skip in skips)
    kept = next(group for group in parameter_groups(model, 0.1) if group["weight_decay"] == 0)
    assert {id(skip) for skip in skips} <= {id(parameter) for parameter in kept["params"]}


def test_a_model_has_none_unless_it_is_asked_for():
    assert not any("skip" in name for name in make_model("rglru bmru").state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", STACKS)
@torch.no_grad()
def test_a_cached_state_goes_on_as_the_whole_does(pattern, dtype):
    """In pieces of several tokens and of one, which kernels may run. 16 bits: the units' amplitudes are small, since a
    candidate may lie at its threshold."""
    halves = dtype == torch.bfloat16
    model = make_model(pattern, dtype=dtype, input_skip=True, amplitude_init=2**-10 if halves else 1.0)
    ids, cache = make_ids(2, 14), DynamicCache(config=model.config)
    whole = model(ids).logits
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([5, 1, 3, 1, 1, 3], dim=1)]
    assert (torch.cat(pieces, 1) - whole).abs().max() <= (0.05 if halves else 1e-4) * whole.abs().max()


def test_under_autocast():
    model = make_model("rglru bmru", input_skip=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(make_ids(2, 8), labels=make_ids(2, 8)).loss
    loss.backward()
    assert model.model.layers[0].mixer.skip.grad.dtype == torch.float32


@torch.no_grad()
def test_a_saved_state_is_for_models_with_the_same_skip(tmp_path):
    model, other = make_model("rglru bmru", input_skip=True), make_model("rglru bmru")
    cache = DynamicCache(config=model.config)
    model(make_ids(1, 5), past_key_values=cache)
    model.save_cache(cache, tmp_path / "state")
    model.load_cache(tmp_path / "state")
    with pytest.raises(ValueError, match="weights"):
        other.load_cache(tmp_path / "state")
