"""Exported programs for the tests of this folder, and how they are compared with eager mode."""

import torch
from models import make_ids, make_model

EXAMPLE = 2, 7
OTHERS = [(3, 5), (1, 40)]


def small_model(pattern, **options):
    return make_model(pattern, eos_token_id=None, **({"intermediate_size": 0} | options))


@torch.no_grad()  # else the loops of the graph are differentiated, in vain
def export_prefill(model, exporter, config, **cache):
    return exporter.export(model, example() | cache, config)


@torch.no_grad()
def export_step(model, exporter, config, prefill, **cache):
    """One token behind what `prefill` returns for the example."""
    out = prefill(**example(), **cache)
    mask = torch.ones(EXAMPLE[0], EXAMPLE[1] + 1, dtype=torch.long)
    inputs = {"input_ids": out.logits[:, -1:].argmax(-1), "attention_mask": mask}
    return exporter.export(model, inputs | {"past_key_values": out.past_key_values}, config)


def export_both(model, exporter, config, cache=dict):
    """Prefill and step; cache: makes the argument with the empty cache, where there is one."""
    prefill = export_prefill(model, exporter, config, **cache())
    return prefill, export_step(model, exporter, config, prefill, **cache())


def example():
    ids = make_ids(*EXAMPLE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(rows, length):
    """Ids and a mask whose first row, of several, is padded on the left."""
    ids = make_ids(rows, length)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, : length // 2] = 0
    return ids, mask


def assert_close(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def check_generation(model, prefill, step, rows, length, steps=4, **cache):
    """Logits of the prefill and, unless it is None, of every `step`, and the tokens, against eager mode."""
    ids, mask = padded(rows, length)
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=steps + 1, do_sample=False)
    out = prefill(input_ids=ids, attention_mask=mask, **cache)
    with torch.no_grad():
        want = model(input_ids=tokens[:, :-1], attention_mask=torch.cat([mask, mask.new_ones(rows, steps)], 1)).logits
    assert_close(out.logits[mask.bool()], want[:, :length][mask.bool()])
    for i in range(steps if step is not None else 0):
        chosen = out.logits[:, -1:].argmax(-1)
        assert torch.equal(chosen, tokens[:, length + i : length + i + 1])
        mask = torch.cat([mask, torch.ones_like(chosen)], 1)
        out = step(input_ids=chosen, attention_mask=mask, past_key_values=out.past_key_values)
        assert_close(out.logits[:, -1], want[:, length + i])
    return out
