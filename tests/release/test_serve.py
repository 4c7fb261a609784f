"""transformers' server loads a checkpoint of hybridlm once it was told of the class, and not before."""

import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cli.serving import model_manager

from hybridlm.errors import UserError
from hybridlm.release import serve as serving


@pytest.fixture
def manager(checkpoint):
    """manager() -> what `transformers serve CHECKPOINT --device cpu` loads its model with."""
    yield lambda: model_manager.ModelManager(device="cpu", force_model=str(checkpoint))
    vars(model_manager.transformers).pop("HybridLMForCausalLM", None)


def test_the_server_finds_the_class(manager, checkpoint):
    with pytest.raises(AttributeError, match="HybridLMForCausalLM"):
        manager()  # where this loads, `be_found` is no longer needed
    serving.be_found()
    (loaded,) = manager().loaded_models.values()
    ids, own = torch.tensor([[0, 5, 7]]), AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, own(ids).logits)


def test_what_the_server_needs_and_cannot_do(monkeypatch):
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    with pytest.raises(UserError, match=r"needs fastapi, uvicorn and openai: pip install .*\[serve\]"):
        serving.serve(["model"])
    with pytest.raises(UserError, match="would fail every request"):
        serving.serve(["model", "--continuous-batching"])


def test_the_checkpoint_is_looked_at_before_the_server_starts(checkpoint, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(serving, "is_serve_available", lambda: True)
    monkeypatch.setattr("transformers.cli.transformers.main", lambda: started.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    with pytest.raises(UserError, match="checkpoint nowhere: there is no such folder"):
        serving.serve(["nowhere", "--port", "8000"])
    pickled = shutil.copytree(checkpoint, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        serving.serve([str(pickled)])
    assert not started
    for options in ([str(checkpoint), "--port", "8000"], ["owner/model@main"], ["--port", "8000"]):
        serving.serve(options)
        assert started.pop() == ["transformers", "serve", *options]
