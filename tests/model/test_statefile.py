"""The file of a conversation: what changed bytes, other versions and other models do to it, and what is not saved."""

import json

import pytest
import torch
from models import make_ids, make_model
from test_conversation import STACK, identical, read
from transformers import DynamicCache, StaticCache

from hybridlm import HybridLMForCausalLM, HybridLMForTokenClassification
from hybridlm.model.statefile_hybridlm import _SEAL, _seal, read_header


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(model, ids):
    model.save_cache(read(model, ids), "state.safetensors")
    return "state.safetensors"


def test_no_changed_byte_of_a_header_is_believed(tmp_path):
    """Whether it is one of ours or one of safetensors': the message is about the file, not about a model."""
    model = make_model("bmru attention")
    path = tmp_path / saved(model, make_ids(1, 8))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert b'\\"length\\": 8' in data[:end]
    path.write_bytes(data.replace(b'\\"length\\": 8', b'\\"length\\": 9'))
    with pytest.raises(ValueError, match="damaged, its header was changed"):
        model.load_cache(path)
    for place in range(end):
        changes = {data[place] ^ 1, ord("7") if chr(data[place]).isdigit() else ord('"')} - {data[place]}
        for byte in changes:
            changed = bytearray(data)
            changed[place] = byte
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=r"damaged|not a whole|missing|not a conversation|format [0-9]+ of"):
                model.load_cache(path)


def test_the_file_follows_the_umask(tmp_path):
    model = make_model(STACK)
    (tmp_path / "plain").touch()
    model.save_cache(read(model, make_ids(1, 5)), tmp_path / "book.state")
    assert (tmp_path / "book.state").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_of_an_older_format_is_named(tmp_path):
    path = tmp_path / saved(make_model(STACK), make_ids(1, 9))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"hybridlm_conversation":"2"', b'"hybridlm_conversation":"1"'))
    with pytest.raises(ValueError, match=r"format 1 of an older hybridlm; this one reads 2\. Read the text again"):
        read_header(path)


@pytest.mark.parametrize(
    ("filled", "saving", "says"),
    [
        ("lru", "gru", r"layer 0 of it holds .*'0\.re'.*, 'gru' of the model .*'0\.h'"),
        ("bmru", "lru bmru", r"its layers are \['HybridRecurrentLayer'\], the model's"),
        ("attention", "sliding_attention", r"its layers are \['DynamicLayer'\], the model's \['DynamicSliding"),
        ("bmru+lru", "lru+bmru", "layer 0 of it holds"),
        ("mamba2", "bmru", "layer 0 of it holds"),
    ],
)
def test_a_cache_of_another_model_is_not_saved(filled, saving, says, tmp_path):
    cache = read(make_model(filled), make_ids(1, 9))
    with pytest.raises(ValueError, match=f"the cache is not this model's: {says}"):
        make_model(saving).save_cache(cache, tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("options", [{"state_size": 16}, {"conv_kernel": 3}, {"num_key_value_heads": 1}], ids=str)
def test_a_cache_of_other_sizes_is_not_saved(options):
    for make, sizes in ((DynamicCache, {}), (StaticCache, {"max_cache_len": 20})):
        cache = read(make_model("bmru attention", **options), make_ids(1, 9), make, **sizes)
        with pytest.raises(ValueError, match=r"the cache is not this model's: layer [01] of it holds"):
            make_model("bmru attention").save_cache(cache, "state")


def test_what_no_conversation_can_hold():
    model, ids = make_model(STACK), make_ids(1, 9)
    cache = read(model, ids)
    for rest, says in (
        ({"pending_ids": ids.float()}, "pending_ids has dtype torch.float32; give token ids"),
        ({"pending_ids": ids[:, :0]}, r"pending_ids has shape \(1, 0\), no token; leave it out"),
        ({"pending_ids": [[1, 2]]}, "pending_ids is a list; give a tensor of 1 rows"),
        ({"input_ids": torch.ones(1, 10)}, "input_ids has dtype torch.float32"),
        ({"notes": "text"}, "notes='text': must be a dictionary of text"),
        ({"notes": {"title": object()}}, "notes={'title': <object.*must be a dictionary of text"),
        ({"notes": {3: "three"}}, "notes={3: 'three'}: must be a dictionary of text"),
    ):
        with pytest.raises(ValueError, match=says):
            model.save_cache(cache, "state", **rest)


def test_what_no_state_depends_on_does_not_keep_it_from_being_loaded(tmp_path):
    """Settings of a training and of the head, also in a classifier on the same stack."""
    model = make_model("bmru fqbmru attention")
    model.save_pretrained(tmp_path / "model")
    cache = read(model, make_ids(1, 9))
    model.save_cache(cache, "state")
    options = {"classifier_dropout": 0.1, "attention_dropout": 0.2, "surrogate_slope": 2.0, "amplitude_init": 3.0}
    for kind in (HybridLMForCausalLM, HybridLMForTokenClassification):
        other = kind.from_pretrained(tmp_path / "model", **options)
        assert other.config.classifier_dropout == 0.1
        assert identical(other.load_cache("state"), cache)
    other = HybridLMForCausalLM.from_pretrained(tmp_path / "model", threshold_high=1.25)
    with pytest.raises(ValueError, match=r"with threshold_high 1\.5 \(here 1\.25\)"):
        other.load_cache("state")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("layers", value) for value in (None, 3, [3], [{}], "x")),
        *(("tokens", value) for value in (-1, "x", None, 1.5, True, 2**70)),
        *(("model", value) for value in (None, [], 3)),
        *(("notes", value) for value in (None, {"a": 1}, [])),
        ("max_cache_len", "x"),
    ],
)
def test_a_header_that_somebody_sealed_anew(tmp_path, name, value):
    model = make_model("bmru attention")
    path = tmp_path / saved(model, make_ids(1, 8))
    rewrite(path, name, value)
    with pytest.raises(ValueError, match=str(path)):
        model.load_cache(path)


@pytest.mark.parametrize(("layer", "tensors"), [(0, ["conv"]), (1, ["keys"]), (0, [])])
def test_layers_that_are_not_the_models(tmp_path, layer, tensors):
    model = make_model("bmru attention")
    path = tmp_path / saved(model, make_ids(1, 8))
    layers = read_header(path)["layers"]
    layers[layer]["tensors"] = tensors
    rewrite(path, "layers", layers)
    with pytest.raises(ValueError, match=f"what it holds of layer {layer} is none of its states"):
        model.load_cache(path)


def rewrite(path, name, value):
    """Puts another value into the header of a file, and a right seal."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = {key: text for key, text in header["__metadata__"].items() if key != _SEAL} | {name: json.dumps(value)}
    text = json.dumps(header | {"__metadata__": metadata | {_SEAL: _seal(metadata)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
