"""Loading: bit for bit what was saved, or one message that says what is wrong."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hybridlm import HybridLMForTokenClassification
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import load_checkpoint


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def test_what_was_saved_is_what_is_loaded(build, tokenizer, checkpoint):
    model, loaded = load_checkpoint(checkpoint)
    assert not model.training
    weights = build().state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_dtype(checkpoint):
    assert load_checkpoint(checkpoint)[0].dtype == torch.float32
    assert load_checkpoint(checkpoint, dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"dtype='bfloat61'.*did you mean 'bfloat16'"):
        load_checkpoint(checkpoint, dtype="bfloat61")


def test_an_unknown_device_is_refused(checkpoint):
    with pytest.raises(UserError, match="device='gpu'"):
        load_checkpoint(checkpoint, device="gpu")


@pytest.mark.parametrize("path", ["runs/demo/run/final", "./model", "/no/such/model", "~/no-such-model", "model"])
def test_a_local_path_is_never_looked_up_on_the_network(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="there is no such folder"):
        load_checkpoint(path)


def test_a_name_on_the_hub_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"owner/model: cannot be loaded.*no folder of that name here.*spelling"):
        load_checkpoint("owner/model")  # offline
    (tmp_path / "owner").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        load_checkpoint("owner/model")


def test_a_misspelt_folder_is_guessed(copy):
    with pytest.raises(UserError, match="did you mean 'model'"):
        load_checkpoint(copy.with_name("modle"))


def test_a_runs_folder_leads_to_its_checkpoints(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "run" / "final")
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / "step-00000010")
    with pytest.raises(UserError, match=r"no config\.json.*run/final, .*step-00000010"):
        load_checkpoint(tmp_path / "run")


def test_a_file_is_no_checkpoint(copy):
    with pytest.raises(UserError, match="that is a file"):
        load_checkpoint(copy / "model.safetensors")


def test_damaged_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be loaded.*Copy the folder again from where it was written"):
        load_checkpoint(copy)


def test_an_onnx_export_is_no_checkpoint(copy):
    (copy / "model.safetensors").rename(copy / "model.onnx")
    with pytest.raises(UserError, match="that is an ONNX export"):
        load_checkpoint(copy)


def test_missing_weights_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    removed = sorted(tensors)[3]
    del tensors[removed]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"missing keys: {removed}"):
        load_checkpoint(copy)


def test_weights_of_another_shape_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_checkpoint(copy)


def test_a_model_of_another_kind_is_named(copy, build):
    """A classifier's folder is whole; it is no language model."""
    HybridLMForTokenClassification(build().config).save_pretrained(copy)
    with pytest.raises(UserError, match="holds a HybridLMForTokenClassification, and a HybridLMForCausalLM is needed"):
        load_checkpoint(copy)


def test_a_missing_tokenizer_is_refused(copy, monkeypatch):
    """Before the weights are read."""
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=f"{copy}: the folder holds no tokenizer"):
        load_checkpoint(copy)


def test_a_tokenizer_of_another_model_is_refused(copy, build):
    build(vocab_size=280).save_pretrained(copy)
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, the model 280"):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["3", "[]", "null", "[" * 100_000])
def test_a_file_that_says_something_else(copy, name, text):
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=str(copy)):
        load_checkpoint(copy)


def test_a_tokenizer_without_an_end_names_its_folder(copy):
    fields = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(fields | {"eos_token": None}))
    with pytest.raises(UserError, match=f"{copy}: tokenizer: it has no end symbol"):
        load_checkpoint(copy)
