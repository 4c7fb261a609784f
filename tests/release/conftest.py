"""Checkpoints to export, small enough for every test."""

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from hub_server import HubServer
from huggingface_hub import constants
from models import make_model

from hybridlm.data.tokenizer import train_tokenizer

TEXT = "She was the youngest of the two daughters of a most affectionate, indulgent father. " * 20


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([TEXT], vocab_size=280)


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A language model in bf16 as a run leaves it: with a tokenizer, training state and evaluations. Tests must not
    write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    make_model("rglru bmru", dtype=torch.bfloat16, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("training_state/state.json", "evaluation/book-16.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, to which huggingface_hub's client and transformers' talk in this process."""
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        yield hub
        huggingface_hub.close_session()
    assert not hub.broken
