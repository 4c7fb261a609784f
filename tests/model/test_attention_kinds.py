"""Attention beside transformers' own: Phi's partial rotation, and a kernel that is told its window and padding as Flash
Attention is."""

import pytest
import torch
from models import make_ids, make_model
from transformers import AttentionInterface, AttentionMaskInterface, PhiConfig
from transformers.masking_utils import flash_attention_mask
from transformers.models.phi.modeling_phi import PhiAttention, PhiRotaryEmbedding

HALF = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}


@torch.no_grad()
def test_the_same_channels_turn_as_in_phi():
    mixer = make_model("attention", rope_parameters=HALF).model.layers[0].mixer
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = PhiConfig(hidden_size=32, **heads, rope_parameters=HALF, attn_implementation="eager")
    reference = PhiAttention(config, 0).eval()
    for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "dense")):
        linear = reference.get_submodule(theirs)
        linear.weight.copy_(mixer.get_submodule(ours).weight)
        linear.bias.zero_()
    x, places = torch.randn(2, 20, 32), torch.arange(20)[None] + 5
    turns = PhiRotaryEmbedding(config)(x, places)
    assert turns[0].shape == (1, 20, 4)  # half of a head's 8 channels
    seen = torch.zeros(1, 1, 20, 20).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    got, want = (part(x, position_embeddings=turns, attention_mask=seen)[0] for part in (mixer, reference))
    assert torch.allclose(got, want, atol=1e-5)
    whole = make_model("attention").model
    assert not torch.allclose(whole.layers[0].mixer(x, seen, whole.rotary_emb(x, places))[0], want, atol=1e-2)


def as_told(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    """Softmax attention that knows the past by counting from the end, as Flash Attention does: no mask of T x T, the
    padding as (B, keys) or None, and a window in tokens, the present among them."""
    key, value = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (key, value))
    queries, keys = query.shape[2], key.shape[2]
    back = torch.arange(keys - queries, keys).unsqueeze(1) - torch.arange(keys)
    hidden = (back < 0) | (back >= (keys if sliding_window is None else sliding_window))
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], keys)
        hidden = hidden | (attention_mask == 0)[:, None, None]
    scores = (query @ key.mT * scaling).masked_fill(hidden, torch.finfo(query.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture
def as_flash(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "as_told", as_told)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "as_told", flash_attention_mask)
    return "as_told"


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("pattern", ["attention", "sliding_attention", "lru sliding_attention attention"])
@torch.no_grad()
def test_a_kernel_is_told_what_flash_attention_needs(pattern, padding, as_flash):
    """Texts longer than the window, in one forward and through the cache, beside sdpa."""
    model, ids = make_model(pattern), make_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    want, tokens = model(ids, attention_mask=mask).logits[mask.bool()], model.generate(ids, **options)
    model.set_attn_implementation(as_flash)
    got = model(ids, attention_mask=mask).logits[mask.bool()]
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert torch.equal(model.generate(ids, **options), tokens)
