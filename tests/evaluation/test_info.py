"""The facts about a checkpoint, against the model itself."""

import json

import pytest
import torch
from transformers import DynamicCache

from hybridlm.errors import UserError
from hybridlm.evaluation.info import describe, parameters_by_kind, render


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "pattern", ["rglru bmru", "lru+cmru attention", "mingru acmru", "mamba2 fqbmru+gru sliding_attention"]
)
def test_every_parameter_is_counted_once(build, pattern, tied):
    model = build(pattern, tie_word_embeddings=tied)
    kinds = parameters_by_kind(model)
    assert sum(kinds.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert "other" not in kinds
    assert kinds["embeddings"] == model.get_input_embeddings().weight.numel()
    assert ("output projection" in kinds) is not tied
    cells = {f"cell {name}" for name in pattern.replace("+", " ").split() if "attention" not in name}
    assert cells == {kind for kind in kinds if kind.startswith("cell ")}


@pytest.mark.parametrize(
    ("pattern", "grows"), [("rglru bmru", False), ("lru attention", True), ("mamba2 sliding_attention", False)]
)
def test_the_cache_is_as_large_as_said(build, tmp_path, pattern, grows):
    model = build(pattern, sliding_window=2)
    model.save_pretrained(tmp_path)
    facts = describe(tmp_path)
    for length in (2, 10):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.ones(1, length, dtype=torch.long), past_key_values=cache, use_cache=True)
        tensors = []
        for layer in cache.layers:
            tensors += [layer.keys, layer.values, *getattr(layer, "states", {}).values(), getattr(layer, "conv", None)]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
        assert held == facts["cache_bytes"] + length * facts["cache_bytes_per_token"]
    assert (facts["cache_bytes_per_token"] > 0) is grows


def test_the_lines_say_what_matters(build, tmp_path):
    build("(rglru bmru)*2").to(torch.bfloat16).save_pretrained(tmp_path)
    facts = describe(tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    lines = render(facts)
    for part in (
        "(rglru bmru)*2",
        "4 layers",
        "bfloat16",
        "300 tokens",
        "cell bmru",
        f"{facts['parameters']:,}",
        "bistable",
    ):
        assert part in lines


def test_finite_state_heads_are_counted(build, tmp_path):
    build("nfsm lru+nfsm", nfsm_heads=4, nfsm_states=3).save_pretrained(tmp_path / "two")
    facts = describe(tmp_path / "two")
    assert facts["finite_state_heads"] == {"layers": 2, "heads": 8, "states": 3}
    assert "automata    8 of 3 states each, in 2 nfsm layers; a byte each in the cache" in render(facts)
    assert "cell nfsm" in facts["parameters_by_kind"]
    build("lru").save_pretrained(tmp_path / "none")
    facts = describe(tmp_path / "none")
    assert facts["finite_state_heads"] is None
    assert "automata" not in render(facts)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        describe(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        describe(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hybridlm", "pattern": "rglru bmur"}))
    with pytest.raises(UserError, match="did you mean 'bmru'"):
        describe(tmp_path)
