"""One forward = prefill + steps = chunks = padded = packed, for every mixer and hybrids of two and three."""

import sys

import pytest
import torch
from models import PATTERNS, make_ids, make_model
from transformers import DynamicCache, StaticCache

from hybridlm.model.mixers_hybridlm import ATTENTION

LENGTH = 45


def whole(model, ids):
    return model(ids, use_cache=False).logits


def stepped(model, ids):
    """A prefill of 20 tokens, then single steps."""
    return chunked(model, ids, [20] + [1] * (ids.shape[1] - 20))


def chunked(model, ids, sizes, cache=None):
    cache = DynamicCache(config=model.config) if cache is None else cache
    parts = []
    for piece in ids.split(sizes, dim=1):
        parts.append(model(piece, past_key_values=cache, use_cache=True).logits)
    assert cache.get_seq_length() == ids.shape[1]
    return torch.cat(parts, dim=1)


def randomly_chunked(model, ids):
    generator = torch.Generator().manual_seed(5)
    sizes = []
    while sum(sizes) < ids.shape[1]:
        sizes.append(min(int(torch.randint(1, 9, (), generator=generator)), ids.shape[1] - sum(sizes)))
    return chunked(model, ids, sizes)


def static_cache(model, ids):
    return chunked(model, ids, [20] + [1] * (ids.shape[1] - 20), StaticCache(config=model.config, max_cache_len=64))


def padded(left, positions=True):
    """positions: given as `generate` gives them, so that RoPE sees the same ones; else counted over the padding too."""

    def run(model, ids):
        """Every row alone, as the second row of a batch whose first row is longer."""
        rows = []
        for row in ids:
            pad = torch.full((7,), 3)
            mine = torch.cat([pad, row] if left else [row, pad])
            batch = torch.stack([make_ids(1, LENGTH + 7, seed=9)[0], mine])
            mask = torch.ones_like(batch)
            mask[1, slice(None, 7) if left else slice(LENGTH, None)] = 0
            given = (mask.cumsum(1) - 1).clamp_min(0) if positions else None
            logits = model(batch, attention_mask=mask, position_ids=given, use_cache=False).logits[1]
            rows.append(logits[7:] if left else logits[:LENGTH])
        return torch.stack(rows)

    return run


def packed(model, ids):
    """All rows in one, behind one another, with positions that restart."""
    positions = torch.arange(ids.shape[1]).repeat(ids.shape[0])[None]
    return model(ids.reshape(1, -1), position_ids=positions).logits.view(*ids.shape, -1)


VIEWS = {
    "steps": stepped,
    "chunks": randomly_chunked,
    "static cache": static_cache,
    "left padding": padded(left=True),
    "right padding": padded(left=False),
    "packed": packed,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_all_views_agree_in_float32(pattern):
    model, ids = make_model(pattern), make_ids(3, LENGTH)
    want = whole(model, ids)
    for name, view in {**VIEWS, "left padding, positions counted over it": padded(left=True, positions=False)}.items():
        difference = (view(model, ids) - want).abs().max() / want.abs().max()
        assert difference <= 1e-4, f"{name}: {difference:.2e} of the largest logit"


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_all_views_agree_in_bfloat16(pattern):
    """The tolerance comes from the forward's own noise: how far bf16 logits lie from those of the same weights in fp32.

    That noise is the rounding of every product and every activation. Two bf16 views round the same numbers; only
    products of other shapes are summed in another order, which changes few of them by a unit in the last place, and a
    memory unit whose |c| lies that close to beta flips. So views may differ by a third of the noise at most (root mean
    square over all logits); a state that is rounded to bf16 between
    the calls differs by 0.6 to 1.3 of it in the stacks whose states are not small integers. Attention alone may differ
    by half: it has no such state, and its kernel rounds the weights of other shapes in another order.
    """
    model, ids = make_model(pattern, dtype=torch.bfloat16), make_ids(3, LENGTH)
    want = whole(model, ids).float()
    exact = whole(make_model(pattern, dtype=torch.bfloat16).float(), ids)
    noise = (want - exact).square().mean().sqrt()
    assert 0 < noise < 0.3 * exact.std()
    for name, view in VIEWS.items():
        difference = (view(model, ids).float() - want).square().mean().sqrt()
        share = 1 / 2 if pattern in ATTENTION else 1 / 3
        assert difference <= share * noise, f"{name}: {difference:.3g} with a noise of {noise:.3g}"


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if "sliding_attention" not in pattern])
@torch.no_grad()
def test_padding_inside_a_row_and_in_steps_is_invisible(pattern):
    """Ragged rows that go on: each call pads on the right, so the padding ends up in the middle. (Not for
    `sliding_attention`, whose window counts columns: padding inside a row takes up room in it.)"""
    model = make_model(pattern)
    ids = make_ids(2, 24)
    want = whole(model, ids)
    cache = DynamicCache(config=model.config)
    mask = torch.zeros(2, 0, dtype=torch.long)
    taken, got = [0, 0], [[], []]
    for counts in [(5, 3), (1, 0), (0, 1), (6, 9), (1, 1), (11, 10)]:
        length = max(counts)
        batch, part = torch.full((2, length), 7), torch.zeros(2, length, dtype=torch.long)
        for row, count in enumerate(counts):
            batch[row, :count] = ids[row, taken[row] : taken[row] + count]
            part[row, :count] = 1
        mask = torch.cat([mask, part], dim=1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        logits = model(batch, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        for row, count in enumerate(counts):
            got[row].append(logits[row, :count])
            taken[row] += count
    assert taken == [24, 24]
    for row in range(2):
        assert (torch.cat(got[row]) - want[row]).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if "attention" not in pattern])
@torch.no_grad()
def test_packed_rows_in_chunks(pattern):
    """A document may begin inside a chunk, at its start, and in a single step."""
    model, ids = make_model(pattern), make_ids(3, 15)
    want = whole(model, ids)
    row, positions = ids.reshape(1, -1), torch.arange(15).repeat(3)[None]
    for sizes in ([45], [15, 15, 15], [10, 10, 25], [1] * 45):
        cache = DynamicCache(config=model.config)
        parts = [
            model(piece, position_ids=place, past_key_values=cache).logits
            for piece, place in zip(row.split(sizes, 1), positions.split(sizes, 1), strict=True)
        ]
        assert (torch.cat(parts, 1).view_as(want) - want).abs().max() <= 1e-4 * want.abs().max()


def test_packed_rows_with_a_cache_are_refused_where_attention_would_mix_them():
    model = make_model("bmru attention")
    cache = DynamicCache(config=model.config)
    positions = torch.arange(6).repeat(2)[None]
    with pytest.raises(ValueError, match="cannot separate it"):
        model(make_ids(1, 12), position_ids=positions, past_key_values=cache)


def test_generation_where_values_are_not_looked_at_for_free(monkeypatch):
    """On a GPU document starts stay a tensor, all False in a plain text; attention must not take that for packing."""
    model, ids = make_model("bmru attention"), make_ids(2, 7)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(ids, **options)
    module = sys.modules["hybridlm.model.modeling_hybridlm"]
    found = module.document_starts

    def as_on_a_gpu(position_ids, *rest):
        starts = found(position_ids, *rest)
        return torch.zeros_like(position_ids, dtype=torch.bool) if starts is None else starts

    monkeypatch.setattr(module, "document_starts", as_on_a_gpu)
    assert torch.equal(model.generate(ids, **options), want)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_packed_rows_equal_those_of_separate_ones(pattern):
    model, ids = make_model(pattern).double().train(), make_ids(2, 20)
    labels = ids.clone()
    model(ids, labels=labels, num_items_in_batch=torch.tensor(38)).loss.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    packed_labels = labels.clone()
    packed_labels[1, 0] = -100  # the last token of the first document does not predict the second document
    positions = torch.arange(20).repeat(2)[None]
    model(
        ids.view(1, -1), position_ids=positions, labels=packed_labels.view(1, -1), num_items_in_batch=torch.tensor(38)
    ).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, want[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("name", ["bmru", "cmru"])
@torch.no_grad()
def test_memory_states_are_bitwise_equal_given_the_same_drive(name):
    """Steps, chunks, padding on both sides and packing give the same bits, from the same candidates and thresholds."""
    cell = make_model(name).model.layers[0].mixer.cells[0]
    x = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(2))
    c, beta = cell.drive(x, None)
    start = cell.initial_state(2, x.device)
    want = scan(cell, c, beta, start)
    for sizes in ([1, 16, 33], [1] * 50):
        state, parts = start, []
        for piece, threshold in zip(c.split(sizes, 1), beta.split(sizes, 1), strict=True):
            states = scan(cell, piece, threshold, state)
            state = {"s": states[:, -1]}
            parts.append(states)
        assert torch.equal(torch.cat(parts, 1), want)
    noise = torch.full((2, 9, 32), 3.0)
    mask = torch.ones(2, 59, dtype=torch.bool)
    mask[:, :9] = False
    left = scan(cell, torch.cat([noise, c], 1), torch.cat([noise / 2, beta], 1), start, mask)
    assert torch.equal(left[:, 9:], want)
    right = scan(cell, torch.cat([c, noise], 1), torch.cat([beta, noise / 2], 1), start, mask.flip(1))
    assert torch.equal(right[:, :50], want)
    assert torch.equal(right[:, 50:], want[:, -1:].expand(2, 9, 32))
    reset = torch.zeros(1, 100, dtype=torch.bool)
    reset[0, 50] = True
    packed_states = scan(cell, c.view(1, 100, -1), beta.view(1, 100, -1), cell.initial_state(1, x.device), None, reset)
    assert torch.equal(packed_states.view(2, 50, -1), want)


def scan(cell, c, beta, state, mask=None, reset=None):
    """The states of the cell's own forward, with the candidates and thresholds given."""
    cell.drive = lambda x, mask: (c, beta)
    return cell(c, state, mask, reset)[1]["s"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_the_cache_holds_the_very_states_of_the_scan(pattern, dtype):
    model, ids = make_model(pattern, dtype=dtype), make_ids(2, 21)
    seen = {}
    for index, layer in enumerate(model.model.layers):
        for number, cell in enumerate(getattr(layer.mixer, "cells", [])):
            cell.register_forward_hook(
                lambda _cell, _inputs, output, key=(index, number): seen.update({key: output[1]})
            )
    cache = DynamicCache(config=model.config)
    for piece in ids.split([20, 1], 1):
        model(piece, past_key_values=cache)
        for (index, number), states in seen.items():
            for name, steps in states.items():
                held = cache.layers[index].states[f"{number}.{name}"]
                assert held.dtype == (torch.uint8 if pattern == "nfsm" else torch.float32)
                assert torch.equal(held, steps[:, -1])
