"""What an export holds, what it does to later saves, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from models import make_ids, make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig

import hybridlm
from hybridlm import HybridLMConfig, HybridLMForCausalLM, HybridLMForSequenceClassification
from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.model.code_hybridlm import AUTO_MAP
from hybridlm.model.versions_hybridlm import REQUIREMENT
from hybridlm.release import export as export_module
from hybridlm.release.card import is_own_card
from hybridlm.release.export import AUTO_CLASSES, export_checkpoint

ROOT = Path(hybridlm.__file__).parent
CODE = {path.name for path in (ROOT / "model").glob("*.py")} - {"__init__.py"}
WITH_CODE = CODE | {"LICENSE-CODE", "NOTICE-CODE", "config.json", "model.safetensors"}


def export(checkpoint, out, **options):
    return export_checkpoint(checkpoint, out, log=lambda _: None, **options)


def names(folder):
    return {path.name for path in folder.iterdir()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_folder_holds_what_is_needed_and_nothing_else(checkpoint, tmp_path):
    done = export(checkpoint, tmp_path / "out")
    out = tmp_path / "out"
    assert names(out) == WITH_CODE | {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert names(tmp_path) == {"out"}
    assert config_of(out)["auto_map"] == AUTO_MAP
    before = {name: value for name, value in config_of(checkpoint).items() if name != "auto_map"}
    assert {name: value for name, value in config_of(out).items() if name != "auto_map"} == before
    weights, exported = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    assert weights.keys() == exported.keys()
    assert all(exported[name].dtype == torch.bfloat16 for name in exported)
    assert all(torch.equal(weights[name], exported[name]) for name in weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((checkpoint / name).read_text())
    for name in CODE:
        assert (out / name).read_bytes() == (ROOT / "model" / name).read_bytes()
    assert (done.location, done.architecture, done.pattern) == (str(out), "HybridLMForCausalLM", "rglru bmru")
    assert done.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(checkpoint).parameters())


def test_the_licence_beside_the_code_is_that_of_the_project(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    for name in ("LICENSE", "NOTICE"):
        text = (ROOT / "model" / name).read_bytes()
        assert (tmp_path / "out" / f"{name}-CODE").read_bytes() == text
        if (ROOT.parent / "pyproject.toml").is_file():  # a clone: the texts at its root are the ones that are edited
            assert (ROOT.parent / name).read_bytes() == text


def test_every_auto_class_that_knows_the_model_is_in_the_map():
    """A head that is registered but not named here would not travel."""
    registered = {"AutoConfig": HybridLMConfig}
    for name in dir(transformers):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and HybridLMConfig in mapping:
            registered[name] = mapping[HybridLMConfig]
    named = {auto: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for auto, kind in registered.items()}
    assert named == AUTO_MAP
    assert set(AUTO_CLASSES) <= set(hybridlm.__all__)


def test_an_export_is_a_checkpoint(checkpoint, tmp_path):
    """Loaded with hybridlm, it is the package's own class; saved again, it carries the code again, wherever it goes."""
    export(checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(model) is HybridLMForCausalLM
    model.save_pretrained(tmp_path / "again")
    assert names(tmp_path / "again") == WITH_CODE | {"generation_config.json"}
    model.config.save_pretrained(tmp_path / "config")
    assert names(tmp_path / "config") == WITH_CODE - {"model.safetensors"}
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again", num_labels=3)
    head.save_pretrained(tmp_path / "head")
    assert names(tmp_path / "head") == WITH_CODE
    export(tmp_path / "out", tmp_path / "twice")
    assert names(tmp_path / "twice") == names(tmp_path / "out")


def test_later_saves_of_other_models_stay_as_they_are(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    assert HybridLMForCausalLM._auto_class is None
    assert PreTrainedConfig._auto_class is HybridLMConfig._auto_class is None
    make_model("lru").save_pretrained(tmp_path / "plain")
    assert names(tmp_path / "plain") == {"config.json", "generation_config.json", "model.safetensors"}
    assert "auto_map" not in config_of(tmp_path / "plain")


def test_carry_code_is_switched_on_and_off(tmp_path):
    model = make_model("lru")
    model.carry_code()
    model.save_pretrained(tmp_path / "on")
    assert names(tmp_path / "on") == WITH_CODE | {"generation_config.json"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "on")
    loaded.carry_code(False)
    loaded.save_pretrained(tmp_path / "off")
    assert names(tmp_path / "off") == {"config.json", "generation_config.json", "model.safetensors"}
    assert "auto_map" not in config_of(tmp_path / "off")


def test_a_map_from_a_repository_becomes_local_and_classes_of_others_stay(tmp_path):
    theirs = {"AutoModelForMaskedLM": "modeling_theirs.TheirModel"}
    config = HybridLMConfig(auto_map={"AutoConfig": f"owner/name--{AUTO_MAP['AutoConfig']}"} | theirs)
    config.save_pretrained(tmp_path / "ours")
    assert config_of(tmp_path / "ours")["auto_map"] == AUTO_MAP | theirs
    HybridLMConfig(auto_map=theirs).save_pretrained(tmp_path / "theirs")
    assert names(tmp_path / "theirs") == {"config.json"}
    assert config_of(tmp_path / "theirs")["auto_map"] == theirs


def test_registering_a_class_by_hand_takes_all_of_the_code(tmp_path, monkeypatch):
    """transformers' own way, which changes the class for the whole process."""
    monkeypatch.setattr(HybridLMForCausalLM, "_auto_class", "AutoModelForCausalLM")
    make_model("lru").save_pretrained(tmp_path / "model")
    assert names(tmp_path / "model") == WITH_CODE | {"generation_config.json"}
    assert config_of(tmp_path / "model")["auto_map"] == AUTO_MAP


def test_a_fine_tuned_head_is_exported_as_it_is(tmp_path):
    """Without a tokenizer, as `save_pretrained` leaves it."""
    torch.manual_seed(0)
    model = HybridLMForSequenceClassification(make_model("bmru", num_labels=3).config).eval()
    model.save_pretrained(tmp_path / "tuned")
    done = export(tmp_path / "tuned", tmp_path / "out")
    assert (done.architecture, done.auto_class, done.tokenizer) == (
        "HybridLMForSequenceClassification",
        "AutoModelForSequenceClassification",
        False,
    )
    assert names(tmp_path / "out") == WITH_CODE | {"README.md"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = make_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert "AutoTokenizer" not in done.snippet()
    assert "pipeline_tag: text-classification" in (tmp_path / "out" / "README.md").read_text()


def test_shards_are_read(tmp_path):
    make_model("rglru bmru").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    export(tmp_path / "shards", tmp_path / "out")
    assert "model.safetensors" in names(tmp_path / "out")


def test_the_readme_says_how_to_load_it(checkpoint, tmp_path, monkeypatch):
    done = export(checkpoint, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    for code in (text.split("```python\n")[1].split("```")[0], done.snippet()):
        found = {}
        exec(code, found)
        assert isinstance(found["model"], HybridLMForCausalLM)
        assert len(found["tokenizer"]) == found["model"].config.vocab_size
        assert code.startswith(f"# pip install torch '{REQUIREMENT}'\n")
    assert f"{done.parameters:,} parameters" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_readme_of_its_own_travels(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("My model.")
    export(tmp_path / "mine", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "My model."


def test_a_readme_that_export_wrote_is_written_anew(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "first")
    export(tmp_path / "first", tmp_path / "second")
    text = (tmp_path / "second" / "README.md").read_text()
    assert 'from_pretrained("second"' in text
    assert "first" not in text.replace("read it first", "")


def test_a_name_on_the_hub_is_downloaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_module, "snapshot_download", lambda name, **_: {"owner/model": checkpoint}[name])
    assert export("owner/model", "out").pattern == "rglru bmru"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="owner/model: it is no folder here, and cannot be had from the Hub"):  # offline
        export("owner/model", "other")


def test_an_earlier_export_is_replaced_only_when_asked_to(checkpoint, tmp_path):
    out = tmp_path / "out"
    export(checkpoint, out)
    (out / "cells_old.py").write_text("")
    with pytest.raises(UserError, match="Replace it with --overwrite"):
        export(checkpoint, out)
    assert "cells_old.py" in names(out)
    export(checkpoint, out, overwrite=True)
    assert "cells_old.py" not in names(out)
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_other_folders_are_never_replaced(checkpoint, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / content).write_text('{"model_type": "hybridlm"}')
    before = names(out)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds something that is no export"):
            export(checkpoint, out, overwrite=overwrite)
    assert names(out) == before


@pytest.mark.parametrize("kept", ["notes.txt", ".git", "results/table.csv", "my_model.py", "pytorch_model.bin"])
def test_what_is_no_part_of_an_export_is_named_and_never_removed(checkpoint, tmp_path, kept):
    out = tmp_path / "out"
    export(checkpoint, out)
    (out / kept).parent.mkdir(exist_ok=True)
    (out / kept).write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    name = kept.partition("/")[0]
    for overwrite in (False, True):
        with pytest.raises(UserError, match=rf"is no export \({name}\), and would be lost. Move it elsewhere"):
            export(checkpoint, out, overwrite=overwrite)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("theirs", [False, True])
def test_a_readme_that_was_made_somebodys_own_stays(checkpoint, tmp_path, theirs):
    """In a folder that is replaced; also where the checkpoint has one of its own, which an earlier export copied."""
    source, out, said = shutil.copytree(checkpoint, tmp_path / "mine"), tmp_path / "out", []
    if theirs:
        (source / "README.md").write_text("The checkpoint's.")
    export(source, out)
    text = (out / "README.md").read_text()
    assert is_own_card(text) is theirs
    (out / "README.md").write_text(text + "And my own words.\n")
    before = (out / "README.md").read_bytes()
    (out / "model.safetensors").write_bytes(b"old")
    export_checkpoint(source, out, overwrite=True, log=said.append)
    assert (out / "README.md").read_bytes() == before
    assert f"README.md in {out} was written or changed by somebody, and stays; remove it there to have another" in said
    assert (out / "model.safetensors").read_bytes() != b"old"


def test_a_readme_that_export_wrote_is_replaced_with_the_rest(checkpoint, tmp_path):
    out, said = tmp_path / "out", []
    make_model("lru").save_pretrained(tmp_path / "lru")
    export(tmp_path / "lru", out)
    assert "layers `lru`" in (out / "README.md").read_text()
    export_checkpoint(checkpoint, out, overwrite=True, log=said.append)
    assert "layers `rglru bmru`" in (out / "README.md").read_text()
    assert not any("stays" in line for line in said)


@pytest.mark.parametrize("kind", ["fast", "template"])
def test_every_file_that_an_export_writes_may_be_replaced_by_the_next(checkpoint, tmp_path, kind):
    source, out = shutil.copytree(checkpoint, tmp_path / "mine"), tmp_path / "out"
    if kind == "template":
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
        tokenizer.save_pretrained(source)
    export(source, out)
    assert ("additional_chat_templates" in names(out)) is (kind == "template")
    export(source, out, overwrite=True)


def test_an_empty_folder_is_filled(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    export(checkpoint, tmp_path / "out")
    assert "config.json" in names(tmp_path / "out")


def test_out_must_not_be_in_the_way(checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "runs" / "final")
    for out in (model, model / "export", model / ".." / "final"):
        with pytest.raises(UserError, match="it lies in the checkpoint"):
            export(model, out)
    with pytest.raises(UserError, match="lies in it"):
        export(model, tmp_path / "runs", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="that is a file"):
        export(model, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written \(.*/file is a file"):
        export(model, tmp_path / "file" / "out")
    assert names(tmp_path) == {"runs", "file"}
    assert names(model) == names(checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "llama"}, "its model_type is 'llama'"),
        ({"architectures": None}, "architectures=None"),
        (
            {"architectures": ["HybridLMModel", "HybridLMForCausalLM"]},
            "must be one of HybridLMModel, HybridLMForCausal",
        ),
        ({"architectures": ["HybridLMForCausalML"]}, "did you mean 'HybridLMForCausalLM'"),
        ({"hidden_size": 64}, "cannot be loaded"),
        ({"pattern": "rglru"}, "unexpected keys"),
        ({"pattern": "rglru bmur"}, "did you mean 'bmru'"),
        ({"vocab_size": 10}, "cannot be loaded"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path, change, says):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_of(checkpoint) | change))
    with pytest.raises(UserError, match=says):
        export(tmp_path / "model", tmp_path / "out")
    assert names(tmp_path) == {"model"}


def test_damaged_files_are_refused_and_an_older_export_stays(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    for name, content, says in (
        ("model.safetensors", b"nothing", "cannot be loaded"),
        ("tokenizer.json", b"{}", "its tokenizer cannot be loaded"),
        ("generation_config.json", b'{"max_new_tokens": -1}', "cannot be loaded .`max_new_tokens` must be"),
        ("config.json", b"[]", "no JSON object"),
    ):
        model = shutil.copytree(checkpoint, tmp_path / "model")
        (model / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            export(model, tmp_path / "out", overwrite=True)
        shutil.rmtree(model)
    with pytest.raises(UserError, match="there is no such folder"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(checkpoint, tmp_path):
    make_model("lru").save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="the tokenizer has 280 tokens, the model 61"):
        export(tmp_path / "model", tmp_path / "out")


def test_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), "out"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Exporting {checkpoint} (HybridLMForCausalLM) to out\n")
    assert 'AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)' in out
    assert main(["generate", "out", "She", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("She")
    assert main(["export", str(checkpoint), "out"]) == 2
    assert "an export lies there already" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "out", "--overwrite"]) == 0
    assert names(tmp_path) == {"out"}
