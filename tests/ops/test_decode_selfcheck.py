"""The check that compiled decode steps pass before they are used: that it finds what is wrong, far from any tie."""

import pytest
import torch
from transformers import DynamicCache

from hybridlm import HybridLMConfig, ops
from hybridlm.ops import selfcheck
from hybridlm.ops.cpu.decode import Program

if not ops.explain().startswith("cpu"):
    pytest.skip(ops.explain(), allow_module_level=True)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passes_and_draws_no_random_numbers(dtype):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert selfcheck.decode_disagreement(dtype) is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "operation",
    ["norm", "product", "heads", "conv", "gate", "add", "add_scaled", "rglru", "mingru", "memory", "lru", "index"],
)
def test_finds_an_operation_that_is_left_out(operation, monkeypatch):
    monkeypatch.setattr(Program, operation, lambda program, x, *_, to=None, **__: x)
    assert "off by" in selfcheck.decode_disagreement(torch.float32)


def test_its_finite_state_heads_are_far_from_a_tie():
    with torch.no_grad():
        layer, seen = selfcheck._layer("nfsm", torch.float64), []
    cell = layer.mixer.cells[0]
    cell.transition.register_forward_hook(lambda _, __, theta: seen.append(theta))
    cache_layer = type(DynamicCache(config=HybridLMConfig(pattern="bmru")).layers[0])
    cache = type("Cache", (), {"layers": [cache_layer()]})()
    with torch.no_grad():
        for x in (selfcheck._wave(1, 2, 3, selfcheck.WIDTH), selfcheck._wave(2, 2, 1, selfcheck.WIDTH)):
            layer(x.double(), past_key_values=cache)
            best = (seen[-1].unflatten(-1, (2, 3, 3)) + cell.transition_bias).topk(2, -1).values
            assert (best[..., 0] - best[..., 1]).min() > 0.1


def test_its_memory_unit_is_far_from_its_threshold():
    """Sums in another order must not make it write on one side alone."""
    with torch.no_grad():
        layer, seen = selfcheck._layer("rglru+bmru", torch.float64), {}
    for name in ("candidate", "threshold"):
        getattr(layer.mixer.cells[1], name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    cache_layer = type(DynamicCache(config=HybridLMConfig(pattern="bmru")).layers[0])
    cache = type("Cache", (), {"layers": [cache_layer()]})()
    with torch.no_grad():
        for x in (selfcheck._wave(1, 2, 3, selfcheck.WIDTH), selfcheck._wave(2, 2, 1, selfcheck.WIDTH)):
            layer(x.double(), past_key_values=cache)
            margin = (seen["candidate"].abs() - seen["threshold"].abs()).abs()
            assert margin.min() > 0.2
