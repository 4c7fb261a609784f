"""What is saved is what is loaded, bit for bit; and what a model refuses."""

import pytest
import torch
from models import PATTERNS, VOCABULARY, make_ids, make_model
from transformers import AutoModel, AutoModelForCausalLM, StaticCache

from hybridlm import HybridLMForCausalLM, HybridLMModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_save_and_load_bit_for_bit(pattern, dtype, tmp_path):
    model, ids = make_model(pattern, dtype=dtype, learn_initial_state="attention" in pattern), make_ids(2, 15)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # nothing may depend on what is drawn while loading
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert isinstance(loaded, HybridLMForCausalLM)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    for (name, want), (other, got) in zip(tensors(model), tensors(loaded), strict=True):
        assert (name, want.dtype) == (other, got.dtype)
        assert torch.equal(want, got), name
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.eval()(ids).logits)
    base = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert isinstance(base, HybridLMModel)
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(tensors(model.model), tensors(base), strict=True))


def tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings(tied, tmp_path):
    model = make_model("lru", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_loss_forms_agree():
    model, ids = make_model("rglru bmru"), make_ids(2, 12)
    labels = ids.clone()
    labels[0, :4] = -100
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    count = (shifted != -100).sum()
    with torch.no_grad():
        out = model(ids, labels=labels)
        by_hand = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), shifted.flatten(), ignore_index=-100)
        assert torch.allclose(out.loss, by_hand)
        assert torch.allclose(model(ids, shift_labels=shifted).loss, by_hand)
        halved = model(ids, shift_labels=shifted, num_items_in_batch=2 * count).loss
        assert torch.allclose(2 * halved, by_hand)


def test_logits_to_keep_and_output_forms():
    model, ids = make_model("rglru attention"), make_ids(2, 12)
    with torch.no_grad():
        full = model(ids, output_hidden_states=True)
        assert [h.shape for h in full.hidden_states] == [(2, 12, 32)] * 3
        assert torch.allclose(model(ids, logits_to_keep=1).logits, full.logits[:, -1:], atol=1e-6)
        picked = model(ids, logits_to_keep=torch.tensor([0, 5])).logits
        assert torch.allclose(picked, full.logits[:, [0, 5]], atol=1e-6)
        assert torch.equal(model(ids, return_dict=False)[0], full.logits)
        embeds = model.model.embed_tokens(ids)
        assert torch.allclose(model(inputs_embeds=embeds).logits, full.logits, atol=1e-6)


def test_gradient_checkpointing_changes_nothing():
    model, ids = make_model("(rglru bmru)*2 attention").train(), make_ids(2, 12)
    model(ids, labels=ids).loss.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, want[name], atol=1e-6), name


def test_bad_input():
    model, ids = make_model("rglru bmru"), make_ids(1, 5)
    with pytest.raises(ValueError, match="has no token"):
        model(ids[:, :0])
    for bad in (VOCABULARY, -1):
        wrong = ids.clone()
        wrong[0, 2] = bad
        with pytest.raises(ValueError, match=f"input_ids holds {bad}"):
            model(wrong)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=torch.zeros(1, 5, 32))

    for typo, meant in (
        ("atention_mask", "attention_mask"),
        ("lables", "labels"),
        ("past_key_value", "past_key_values"),
    ):
        with pytest.raises(ValueError, match=f"'{typo}'; did you mean '{meant}'"):
            model(ids, **{typo: None})
    for shape in ((1, 4), (1, 6), (1, 1, 5, 5)):
        with pytest.raises(ValueError, match="recurrent layers need"):
            model(ids, attention_mask=torch.ones(shape))


def test_caches_that_do_not_serve():
    model = make_model("bmru attention")
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        model(make_ids(2, 6), past_key_values=cache)
    with pytest.raises(ValueError, match="holds 2 rows, the input has 1"):
        model(make_ids(1, 2), past_key_values=cache)
    with pytest.raises(ValueError, match="is full: 6 tokens are in it, 3 come"):
        model(make_ids(2, 3), past_key_values=cache)


# torch's own tracer makes an instance of an autograd Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("pattern", ["(rglru bmru)*2", "lru bmru attention"])
def test_a_compiled_step_with_a_static_cache_equals_eager(pattern):
    """One graph without a break; the backend is eager, since what is traced is in question, not what is generated."""
    model, ids = make_model(pattern), make_ids(1, 12)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        want = model(ids, use_cache=False).logits[:, 8:]
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :8], past_key_values=cache)
        step = torch.compile(model, backend=backend, fullgraph=True)
        got = torch.cat([step(ids[:, t : t + 1], past_key_values=cache).logits for t in range(8, 12)], dim=1)
    assert len(graphs) == 1
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
