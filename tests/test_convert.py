"""`hybridlm convert`: the folder it writes is a checkpoint of this package, with the tokenizer of its source."""

from pathlib import Path

import pytest
import torch
from models import make_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, Mamba2Config, Mamba2ForCausalLM

from hybridlm import HybridLMForCausalLM
from hybridlm.cli import main
from hybridlm.data.tokenizer import train_tokenizer
from hybridlm.evaluation.origin import read_origin

TEXT = "She was the youngest of the two daughters of a most affectionate, indulgent father. " * 20


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A working folder with a Mamba-2 of transformers, `theirs`."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([TEXT], vocab_size=280)
    ends = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    sizes = {"num_heads": 8, "head_dim": 8, "hidden_size": 32, "state_size": 16, "n_groups": 2, "chunk_size": 16}
    config = Mamba2Config(num_hidden_layers=2, vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **ends)
    torch.manual_seed(0)
    Mamba2ForCausalLM(config).save_pretrained("theirs")
    tokenizer.save_pretrained("theirs")
    return tmp_path / "theirs"


def test_the_command_writes_a_checkpoint_that_every_other_command_takes(theirs, capsys):
    assert main(["convert", "theirs", "ours"]) == 0
    assert capsys.readouterr().out == "Checkpoint: ours\nTry:        hybridlm info ours\n"
    assert read_origin(Path("ours")) == ("theirs", False)
    assert read_origin(theirs) is None
    ours, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("ours", "theirs"))
    assert isinstance(ours, HybridLMForCausalLM)
    ids = make_ids(2, 20)
    with torch.no_grad():
        want = reference(ids).logits
        assert (ours(ids).logits - want).abs().max() <= 1e-4 * want.abs().max()
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in ("ours", "theirs")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0](TEXT).input_ids == tokenizers[1](TEXT).input_ids
    assert main(["info", "ours"]) == 0
    assert "mamba2*2" in capsys.readouterr().out
    assert main(["generate", "ours", "She was", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("She was")


def test_a_folder_that_is_there_stays_as_it_is(theirs, capsys):
    assert main(["convert", "theirs", "ours"]) == 0
    before = {path: path.read_bytes() for path in (theirs.parent / "ours").iterdir()}
    capsys.readouterr()
    assert main(["convert", "theirs", "ours"]) == 2
    assert capsys.readouterr().err == (
        "hybridlm convert: out ours: it exists already. Give a folder that does not, or remove it.\n"
    )
    assert {path: path.read_bytes() for path in (theirs.parent / "ours").iterdir()} == before


def test_a_source_without_a_tokenizer_gives_a_checkpoint_without_one(theirs):
    """transformers gives it one of two special symbols, which must not be taken for the source's."""
    for path in theirs.glob("tokenizer*"):
        path.unlink()
    assert main(["convert", "theirs", "ours"]) == 0
    files = ["config.json", "converted.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (theirs.parent / "ours").iterdir()) == files


def test_a_place_below_a_file_is_refused_before_the_model_is_read(theirs, capsys, monkeypatch):
    monkeypatch.setattr("hybridlm.convert.from_mamba2", lambda _: pytest.fail("read"))
    assert main(["convert", "theirs", "theirs/config.json/new/ours"]) == 2
    assert "cannot be written (theirs/config.json is a file)" in capsys.readouterr().err


def test_what_is_no_mamba2_is_refused_and_leaves_nothing(theirs, capsys):
    assert main(["convert", "theirs", "ours"]) == 0
    capsys.readouterr()
    assert main(["convert", "ours", "again"]) == 2
    assert "its model_type is 'hybridlm'; 'mamba2' in transformers' format is what" in capsys.readouterr().err
    assert sorted(path.name for path in theirs.parent.iterdir()) == ["ours", "theirs"]
