"""Windows that follow one another over a carried cache are one long forward, whatever the layers and wherever documents
begin; under autograd, detached at the edges as training does it."""

import pytest
import torch
from models import make_ids, make_model
from transformers import DynamicCache

from hybridlm.model.mixers_hybridlm import ATTENTION, MIXERS

RECURRENT = sorted(MIXERS.keys() - ATTENTION.keys())
PATTERNS = [*RECURRENT, "rglru+bmru mamba2", "lstm nfsm lru"]
WINDOW, COUNT = 6, 4
STARTS = ((), (9,), (6, 14), (0, 5, 6, 7, 12, 18, 23))
"""Where documents begin in each row, beside token 0: inside a window, at its first token and at its last."""


def packed_positions():
    positions = torch.arange(WINDOW * COUNT).repeat(len(STARTS), 1)
    for row, starts in enumerate(STARTS):
        for at in starts:
            positions[row, at:] = torch.arange(positions.shape[1] - at)
    return positions


def detached(cache):
    for layer in cache.layers:
        layer._apply(lambda tensor: tensor.detach().clone())
    return cache


def carried(model, ids, positions, edge=lambda cache: cache):
    cache, logits = DynamicCache(config=model.config), []
    for piece, places in zip(ids.split(WINDOW, 1), positions.split(WINDOW, 1), strict=True):
        logits.append(model(piece, position_ids=places, past_key_values=cache, use_cache=False).logits)
        cache = edge(cache)
    return torch.cat(logits, 1)


def compare(found, wanted, tolerance):
    assert (found - wanted).abs().max() <= tolerance * (1e-3 + wanted.abs().max())


@pytest.mark.parametrize("options", [{}, {"conv_kernel": 0, "learn_initial_state": True}])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_windows_over_a_carried_cache_are_one_forward(pattern, options):
    """Logits; and gradients where nothing is cut off."""
    for epsilon in (0.0, 0.5) if "bmru" in pattern.replace("fqbmru", "") else (0.0,):
        model = make_model(pattern, dtype=torch.float64, **options).train()
        model.set_epsilon(epsilon)
        ids, positions = make_ids(len(STARTS), WINDOW * COUNT), packed_positions()
        wanted = model(ids, position_ids=positions, use_cache=False).logits
        compare(carried(model, ids, positions, detached), wanted, 1e-9)
        if "nfsm" in pattern:  # its states are integers, which no gradient passes
            continue
        weights = torch.randn_like(wanted)
        (wanted * weights).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        (carried(model, ids, positions) * weights).sum().backward()
        for name, parameter in model.named_parameters():
            compare(parameter.grad, gradients[name], 1e-8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_end_at_the_edge(pattern):
    """Those of the last window are those of that window over a state that is given."""
    model, ids = make_model(pattern, dtype=torch.float64).train(), make_ids(len(STARTS), WINDOW * COUNT)
    positions = packed_positions()
    split = WINDOW * (COUNT - 1)
    with torch.no_grad():
        given = DynamicCache(config=model.config)
        model(ids[:, :split], position_ids=positions[:, :split], past_key_values=given)
    model(ids[:, split:], position_ids=positions[:, split:], past_key_values=given).logits.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    carried(model, ids, positions, detached)[:, split:].sum().backward()
    for name, parameter in model.named_parameters():
        compare(parameter.grad, gradients[name], 1e-8)


def test_a_document_at_the_edge_sees_nothing_of_the_one_before():
    model, ids, positions = make_model("rglru+bmru mamba2").double(), make_ids(4, WINDOW * COUNT), packed_positions()
    logits = carried(model, ids, positions)[2, 6:14]
    compare(logits, model(ids[2:3, 6:14], use_cache=False).logits[0], 1e-9)


@pytest.mark.parametrize("pattern", ["bmru", "rglru+bmru"])
def test_a_learned_start_has_a_gradient_in_every_window(pattern):
    """Also where no document begins: several processes wait for that of each parameter."""
    model, ids = make_model(pattern, learn_initial_state=True).train(), make_ids(2, 2 * WINDOW)
    positions = torch.arange(2 * WINDOW).repeat(2, 1)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :WINDOW], position_ids=positions[:, :WINDOW], past_key_values=cache)
    model(ids[:, WINDOW:], position_ids=positions[:, WINDOW:], past_key_values=cache).logits.sum().backward()
    starts = {name: p.grad for name, p in model.named_parameters() if name.endswith("s0")}
    assert starts
    assert all(grad is not None and not grad.any() for grad in starts.values())
