"""Packed rows with an attention mask: documents do not see one another, in whatever way attention is computed."""

import pytest
import torch
import transformers.masking_utils
import transformers.modeling_flash_attention_utils as flash
from models import PATTERNS, make_ids, make_model

from hybridlm.model.masks_hybridlm import causal_masks, document_starts

ROWS = {
    "ones": [[5, 1, 9], [10, 5]],
    "padded": [[-2, 5, 1, -1, 4, -2], [10, 3, -2]],
}
"""Lengths of documents, negative ones of padding, which stands in front, between and behind."""
WITH_ATTENTION = ["attention", "sliding_attention", "lru bmru attention"]


def packed(kind):
    """ids, position_ids, mask, and the place of every document as (row, slice)."""
    ids, positions, mask, documents = make_ids(2, 15), torch.zeros(2, 15, dtype=torch.long), torch.ones(2, 15), []
    for row, lengths in enumerate(ROWS[kind]):
        at = 0
        for length in lengths:
            place = slice(at, at + abs(length))
            if length > 0:
                positions[row, place] = torch.arange(length)
                documents.append((row, place))
            else:
                mask[row, place] = 0
            at = place.stop
    return ids, positions, mask.long(), documents


def apart(model, ids, documents):
    return [model(ids[row : row + 1, place], use_cache=False).logits[0] for row, place in documents]


def assert_each_as_alone(logits, alone, documents, tolerance=1e-9):
    for (row, place), want in zip(documents, alone, strict=True):
        assert (logits[row, place] - want).abs().max() <= tolerance * want.abs().max(), (row, place)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_documents_beside_a_mask(pattern, kind, implementation, use_cache):
    model = make_model(pattern, attn_implementation=implementation).double()
    ids, positions, mask, documents = packed(kind)
    logits = model(ids, position_ids=positions, attention_mask=mask, use_cache=use_cache).logits
    # transformers' eager attention takes its softmax in fp32, which rounds a long row otherwise on some processors.
    tolerance = 1e-6 if implementation == "eager" else 1e-9
    assert_each_as_alone(logits, apart(model, ids, documents), documents, tolerance)


# torch's own tracer makes an instance of an autograd Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("pattern", WITH_ATTENTION)
@torch.no_grad()
def test_documents_beside_a_mask_in_a_compiled_graph(pattern, kind):
    """Where values cannot be looked at; one graph. The backend is eager: what is traced is in question."""
    model = make_model(pattern).double()
    ids, positions, mask, documents = packed(kind)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    logits = compiled(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    assert_each_as_alone(logits, apart(model, ids, documents), documents)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("pattern", ["attention", "sliding_attention"])
def test_the_mask_of_flex_attention_is_that_of_sdpa(pattern, kind, monkeypatch):
    """Its kernel does not run here; of its mask, only that it is compiled is left out."""
    make = transformers.masking_utils.create_block_mask
    monkeypatch.setattr(
        transformers.masking_utils, "create_block_mask", lambda *_, _compile, **options: make(**options)
    )
    model = make_model(pattern)
    _, positions, mask, _ = packed(kind)
    starts = document_starts(positions, mask.bool(), mask, 0)
    masks = []
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        embeds = torch.zeros(2, 15, 32)
        made, _ = causal_masks(model.config, model.model.layer_types, embeds, mask, None, positions, starts)
        masks.append(made[model.model.layer_types[0]])
    dense, block = masks
    rows, queries, keys = (torch.arange(n) for n in (2, 15, 15))
    where = torch.cartesian_prod(rows, queries, keys).unbind(1)
    assert torch.equal(block.mask_mod(where[0], torch.tensor(0), *where[1:]).view(2, 15, 15), dense[:, 0])


def attend(q, k, v, softmax_scale, window_size):
    """Causal attention of one text, (T, heads, head width), as flash attention counts its window."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None]
    hidden = (ahead > 0) | ((ahead < -window_size[0]) if window_size[0] >= 0 else False)
    scores = (torch.einsum("qhd,khd->hqk", q, k) * softmax_scale).masked_fill(hidden, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def flash_batch(q, k, v, *, causal, softmax_scale, dropout_p=0.0, window_size=(-1, -1)):
    assert causal
    assert dropout_p == 0
    return torch.stack([attend(*row, softmax_scale, window_size) for row in zip(q, k, v, strict=True)])


def flash_texts(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale, dropout_p=0.0,
    window_size=(-1, -1),
):  # fmt: skip
    """Of texts behind one another, whose ends are given."""
    assert causal
    assert dropout_p == 0
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == torch.int32
    assert int(cu_seqlens_q.diff().max()) == max_seqlen_q == max_seqlen_k
    lengths = cu_seqlens_q.diff().tolist()
    texts = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    return torch.cat([attend(*text, softmax_scale, window_size) for text in texts])


@pytest.fixture
def flash_attention(monkeypatch):
    """transformers' own code around flash attention, with its kernels written out above."""
    process = flash._lazy_define_process_function(flash_texts)
    parts = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash_batch,
        "_flash_varlen_fn": flash_texts,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": process,
        "_process_with_kvcache_kwargs_fn": dict,
    }
    for name, part in parts.items():
        monkeypatch.setattr(flash, name, part, raising=False)


@pytest.mark.usefixtures("flash_attention")
@pytest.mark.parametrize("pattern", WITH_ATTENTION)
@torch.no_grad()
def test_flash_attention_is_told_where_documents_end(pattern):
    """Several rows too, of which transformers finds no documents; in padded ones it has no way to keep them apart."""
    model = make_model(pattern).double()
    ids, positions, mask, documents = packed("ones")
    alone, plain = apart(model, ids, documents), model(ids).logits
    padding = mask.clone()
    padding[0, :4] = 0
    padded = model(ids, attention_mask=padding).logits
    model.config._attn_implementation = "flash_attention_2"
    assert (model(ids).logits - plain).abs().max() <= 1e-9 * plain.abs().max()
    assert (model(ids, attention_mask=padding).logits - padded)[padding.bool()].abs().max() <= 1e-9 * padded.abs().max()
    for given in ({}, {"attention_mask": mask}):
        assert_each_as_alone(model(ids, position_ids=positions, **given).logits, alone, documents)
    with pytest.raises(ValueError, match="padded rows, which 'flash_attention_2' cannot separate"):
        model(ids, position_ids=positions, attention_mask=padding)
