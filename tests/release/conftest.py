"""Checkpoints to export, small enough for every test."""

import pytest
import torch
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
