"""Files of others: what would run code as it is read, or lead out of its folder, is refused by every command, with what
to do, and nothing of it has happened."""

import ast
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import fetch
import numpy as np
import pytest
import torch
from models import save_checkpoint
from safetensors.torch import load_file

import hybridlm
from hybridlm import safe_loading
from hybridlm.cli import main
from hybridlm.data import PrepareConfig, TokenShards, prepare, texts
from hybridlm.data.tokenizer import train_tokenizer
from hybridlm.errors import UserError
from hybridlm.evaluation.run_record import read_runs
from hybridlm.safe_loading import check_weights, is_inside

TEXT = "She was the youngest of the two daughters of a most affectionate, indulgent father. " * 20
CANARY = "harm"


class Harm:
    """A pickle of it makes a folder as it is read."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("made") / "model"
    return save_checkpoint(folder, train_tokenizer([TEXT], vocab_size=280))


@pytest.fixture
def work(tmp_path, monkeypatch, made):
    """A working folder with a checkpoint `model` and a text `book.txt`; nothing in it may have run at the end."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "model")
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    yield tmp_path
    assert not Path(CANARY).exists()


COMMANDS = [
    "generate model x",
    "chat model",
    "read model book.txt --out book.state",
    "evaluate model --text book.txt",
    "evaluate model --text book.txt --lengths 8,16 --out out.json",
    "inspect model --text book.txt",
    "export model exported",
]


def refused(capsys, line):
    """The one message of a command that ends in exit code 2."""
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return said.err


def to_pickle(folder, harmful):
    """Weights as older releases of transformers wrote them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if harmful:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    else:
        torch.save(weights, folder / "pytorch_model.bin")


def to_shard(folder, name):
    """Weights in a file that an index names."""
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, str(name))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("line", COMMANDS)
def test_weights_in_a_pickle_are_refused(work, capsys, line):
    to_pickle(work / "model", harmful=True)
    files = sorted(work.rglob("*"))
    assert "its weights are in pytorch_model.bin, a pickle, which could run code" in refused(capsys, line)
    assert sorted(work.rglob("*")) == files


def test_a_harmless_pickle_too(work, capsys):
    to_pickle(work / "model", harmful=False)
    said = refused(capsys, "generate model x")
    assert "write it again with save_pretrained" in said
    with pytest.raises(UserError, match="pickle"):
        check_weights("model", "checkpoint model")


def test_the_weights_that_a_training_begins_with(work, capsys):
    to_pickle(work / "model", harmful=True)
    (work / "recipe.yaml").write_text(
        "data: {prepare: {sources: [{path: book.txt}], output: data, tokenizer: model, validation: {share: 0}},"
        " sequence_length: 16}\nmodel: {pattern: rglru bmru, hidden_size: 32, num_attention_heads: 4}\n"
        "training: {steps: 1, batch_size: 2, init_from: model}\nvalidation: {every: 0}\n"
    )
    assert "training.init_from='model': its weights are in pytorch_model.bin" in refused(
        capsys, "pretrain --config recipe.yaml"
    )


def test_an_adapter_in_a_pickle(work, capsys):
    (work / "model" / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))
    assert "its weights are in adapter_model.bin" in refused(capsys, "generate model x")


@pytest.mark.parametrize("name", ["../outside.safetensors", "{here}/outside.safetensors", "weights.bin", "a\\..\\b"])
def test_an_index_leads_nowhere_else(work, capsys, name):
    to_shard(work / "model", name.format(here=work))
    for line in COMMANDS:
        said = refused(capsys, line)
        assert "must lie in a .safetensors file inside the folder. Nothing was read" in said


def test_shards_in_the_folder_are_read(work):
    to_shard(work / "model", "model-00001-of-00001.safetensors")
    assert main(["generate", "model", "x", "--max-new-tokens", "1"]) == 0


@pytest.mark.parametrize("text", ["[", "3", "{}", '{"weight_map": {"a": 3}, "metadata": {}}', '{"weight_map": {}}'])
def test_a_damaged_index(work, capsys, text):
    (work / "model" / "model.safetensors").unlink()
    (work / "model" / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json is damaged" in refused(capsys, "generate model x")


def test_an_index_from_the_hub_leads_nowhere_else(work, monkeypatch):
    path = work / "index.json"
    path.write_text('{"metadata": {}, "weight_map": {"a": "../../x.safetensors"}}')
    monkeypatch.setattr(safe_loading, "cached_file", lambda *_, **__: str(path))
    with pytest.raises(UserError, match=r"names '\.\./\.\./x\.safetensors'"):
        check_weights("owner/model", "checkpoint owner/model")


def test_names_that_stay_inside():
    assert all(map(is_inside, ["a", "a/b", ".metadata", "training_state/state.json", "a..b", "__0_0.distcp"]))
    assert not any(map(is_inside, ["", "/a", "../a", "a/../b", "a/..", ".", "a//b", "C:/a", "C:a", "a\\..\\b", "a\0"]))


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_in_a_checkpoint_does_not_run(work, capsys, monkeypatch, part):
    """transformers would ask, and take a line of the pipe for the answer."""
    (work / "model" / "evil.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    name, more = {
        "model": ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}),
        "tokenizer": (
            "tokenizer_config.json",
            {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}},
        ),
    }[part]
    path = work / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    for line in ("generate model x", "chat model", "evaluate model --text book.txt", "export model exported"):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
        said = refused(capsys, line)
        assert "needs code that lies in its own folder, which is not run here" in said or "model_type is 'evil'" in said
    assert not (work / "exported").exists()


@pytest.fixture
def data(work):
    """A data folder `data` with a manifest that can be changed."""
    config = PrepareConfig(sources=[{"path": "book.txt"}], output="data", vocab_size=270, validation={"share": 0})
    prepare(config, lambda _: None)
    return work / "data"


@pytest.mark.parametrize("name", ["../train-00000", "/tmp/train-00000", "a/../../train-00000", ""])
def test_a_manifest_leads_nowhere_else(data, name):
    for path in data.glob("train-00000.*"):
        shutil.copy(path, data.parent)
    manifest = json.loads((data / "manifest.json").read_text())
    (shard,) = manifest["splits"]["train"]
    sums = {file.replace("train-00000", name): sum for file, sum in shard["sha256"].items()}
    shard |= {"name": name, "sha256": sums}
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: it is damaged .*is no file of the folder"):
        TokenShards(data, "train")


def test_checksums_lead_nowhere_else(data):
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"][0]["sha256"]["../book.txt"] = "x"
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the checksums are not those of"):
        TokenShards(data, "train")


def test_an_index_of_objects_is_not_read(data):
    np.save(data / "train-00000.docs.npy", np.array([Harm(), 3], dtype=object), allow_pickle=True)
    assert b"mkdir" in (data / "train-00000.docs.npy").read_bytes()
    with pytest.raises(UserError, match=r"train-00000\.docs\.npy: it cannot be read"):
        TokenShards(data, "train")


@pytest.mark.parametrize("tag", [f"!!python/object/apply:os.mkdir [{CANARY}]", "!!python/name:os.system", "!x y"])
def test_yaml_makes_plain_values_only(work, capsys, tag):
    (work / "recipe.yaml").write_text(f"training: {tag}\n")
    (work / "study.yaml").write_text(f"recipe: recipe.yaml\nmodels: {tag}\n")
    assert "is not valid YAML: could not determine a constructor" in refused(capsys, "pretrain --config recipe.yaml")
    assert "is not valid YAML" in refused(capsys, "prepare --config recipe.yaml")
    assert "is not valid YAML" in refused(capsys, "compare study.yaml")
    assert main(["pretrain", f"training.steps={tag}"]) == 2
    assert "the value is not valid YAML" in capsys.readouterr().err


def laughs(name):
    """Nine levels of nine aliases: 387 million entries, in 500 characters."""
    levels = [f"&{b} [{', '.join(9 * [f'*{a}'])}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return f"{name}: [&a [x], {', '.join(levels)}]\n"


@pytest.mark.parametrize(
    "text",
    [laughs("model"), "model: &a {b: *a}\n", "model: !!timestamp x\n", "a:\n- ? !!timestamp 2001-01-01\n  : 1\n"],
)
def test_the_recipe_of_a_run_that_is_shown(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0, "grad_norm": 1.0}\n')
    (tmp_path / "config.yaml").write_text(text)
    (run,) = read_runs([tmp_path])
    assert run.settings == {}
    assert run.notes[0].startswith("config.yaml cannot be read: ")


def test_a_compressed_file_that_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_HARMLESS", 2**16)
    monkeypatch.setattr(texts, "_PIECE", 2**12)
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 2**20))
    with pytest.raises(UserError, match=r"bomb.txt.gz: it unpacks to more than 250 times its size"):
        list(texts.text_file(path, "line"))
    path.write_bytes(gzip.compress((TEXT + "\n").encode() * 30))  # long lines, in pieces
    assert "".join(texts.text_file(path, "file")) == (TEXT + "\n") * 30


def test_an_archive_of_tests_is_unpacked_into_its_folder(tmp_path):
    """The one archive that anything here unpacks."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in (
            "x/tests/test_modeling_common.py",
            "../tests/../test_up.py",
            "/x/tests/test_up.py",
            "x/tests/up.py",
        ):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"#"))
        link = tarfile.TarInfo("x/tests/test_link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "folder" / "below").mkdir(parents=True)
    fetch._unpack(tmp_path / "a.tar.gz", tmp_path / "folder" / "below")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert files == {"folder/below/test_modeling_common.py"}


def calls(path):
    """(what is called, names of keywords with plain values, names of unpacked ones) in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg is not None}
            yield ast.unparse(node.func), given, {ast.unparse(word.value) for word in node.keywords if word.arg is None}


UNSAFE = {"pickle.load", "pickle.loads", "eval", "exec", "os.system", "yaml.unsafe_load", "accelerator.load_state"}
OWN = {"evaluation/modes.py", "demo.py"}
"""Read what they wrote themselves a moment before; the former with pickle, in a folder of its own."""


def test_nothing_in_the_package_reads_pickles_or_runs_code():
    """`.metadata` of `training/sharded_state.py` has an unpickler that knows a few classes; see its tests."""
    root, loads = Path(hybridlm.__file__).parent, 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for function, given, unpacked in calls(path):
            assert function not in UNSAFE, name
            assert given.get("trust_remote_code", "False") == "False", name
            assert given.get("allow_pickle", "False") == "False", name
            assert not given.get("shell"), name
            if function == "torch.load" and name not in OWN:
                assert given["weights_only"] == "True", name
            if function == "yaml.load":
                assert given["Loader"] == "_Loader", name
            if function in ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained") and name not in OWN:
                assert "NO_CODE" in unpacked, name
                loads += 1
    assert loads >= 4
