"""`training.init_from`: weights alone, and nothing that does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hybridlm.cli import main
from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.errors import UserError
from hybridlm.training.checkpoints import CHECKSUMS, STATE, checkpoints
from hybridlm.training.config import config_yaml
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows


@pytest.fixture
def trained(recipe) -> Path:
    """The final model of a run of another seed, pattern written in another way than the recipe's."""
    return pretrain(recipe("run.name=first", "training.seed=3", "model.pattern=(rglru bmru)")).checkpoint


def first_validation(result) -> dict:
    return next(row for row in read_rows(result.metrics) if "bits_per_byte" in row)


def test_a_run_begins_with_the_weights_alone(recipe, trained, capsys):
    before = json.loads((trained / STATE / "state.json").read_text(encoding="utf-8"))
    assert before["step"] == 4
    ended = [row for row in read_rows(trained.parent / "metrics.jsonl") if "bits_per_byte" in row][-1]
    config = recipe(
        "run.name=second", f"training.init_from={trained}", "validation.at_start=true", "checkpoint.every=1"
    )
    result = pretrain(config)
    assert f"weights:    from {trained}" in capsys.readouterr().out
    rows = read_rows(result.metrics)
    assert first_validation(result)["bits_per_byte"] == pytest.approx(ended["bits_per_byte"], rel=1e-9)
    training = [row for row in rows if "bits_per_byte" not in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert [row["epsilon"] for row in training] == [0.0] * 4
    state = torch.load(checkpoints(config.run.path)[0] / STATE / "optimizer.pt", weights_only=True)["optimizer"][
        "state"
    ]
    last = torch.load(checkpoints(config.run.path)[1] / STATE / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert {float(entry["step"]) for entry in state.values()} == {3.0}
    assert {float(entry["step"]) for entry in last.values()} == {4.0}


def test_annealing_trained_units_again_is_the_users_word(recipe, trained):
    result = pretrain(recipe("run.name=second", f"training.init_from={trained}", "epsilon.start=0.5"))
    assert read_rows(result.metrics)[0]["epsilon"] == 0.5


def test_parameter_groups_are_those_of_a_new_model(recipe, trained, capsys):
    pretrain(recipe("run.name=new", "training.steps=1"))
    new = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters:"))
    pretrain(recipe("run.name=second", "training.steps=1", f"training.init_from={trained}"))
    assert new in capsys.readouterr().out.splitlines()


def test_a_run_that_goes_on_reads_its_own_checkpoint(recipe, trained, interrupted, same_run):
    whole = pretrain(recipe("run.name=whole", f"training.init_from={trained}"))
    config = recipe("run.name=halves", f"training.init_from={trained}")
    interrupted(config, 2)
    shutil.rmtree(trained)
    assert same_run(whole, pretrain(config))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["model.hidden_size=32"], ["model.hidden_size: 16 in the checkpoint, 32 in the recipe"]),
        (
            ["model.pattern=bmru rglru", "model.conv_kernel=2", "model.intermediate_size=96"],
            [
                "model.pattern: (rglru bmru) in the checkpoint, bmru rglru in the recipe",
                "model.conv_kernel: 4 in the checkpoint, 2 in the recipe",
                "model.intermediate_size: 64 in the checkpoint, 96 in the recipe",
            ],
        ),
        (
            ["model.tie_word_embeddings=false"],
            ["model.tie_word_embeddings: True in the checkpoint, False in the recipe"],
        ),
        (["model.learn_initial_state=true"], ["model.learn_initial_state: False in the checkpoint"]),
    ],
)
def test_another_architecture_is_refused_with_all_that_differs(recipe, trained, changes, named):
    with pytest.raises(UserError, match="does not fit") as caught:
        pretrain(recipe("run.name=second", f"training.init_from={trained}", *changes))
    text = str(caught.value)
    assert all(part in text for part in named)
    assert len([line for line in text.splitlines() if line.startswith("  - ")]) == len(named)


def test_what_starts_random_weights_may_differ(recipe, trained):
    changes = ("model.threshold_init=0.3", "model.attention_dropout=0.1", "model.intermediate_size=64")
    assert pretrain(recipe("run.name=second", f"training.init_from={trained}", *changes)).checkpoint.is_dir()


def test_another_tokenizer_is_refused(recipe, trained, tmp_path):
    (tmp_path / "other.txt").write_text("a zebra crossing, vexed by quartz\n\n" * 400, encoding="utf-8")
    other = prepare(
        PrepareConfig(
            sources=[{"path": str(tmp_path / "other.txt")}],
            output=str(tmp_path / "other"),
            vocab_size=270,
            validation={"share": 0.0},
        ),
        log=lambda _: None,
    )
    moved = r"the tokenizer: 300 tokens in the checkpoint, \d+ in the data; \d+ of the checkpoint's have another number"
    with pytest.raises(UserError, match=moved):
        pretrain(recipe("run.name=second", f"training.init_from={trained}", f"data.folder={other}"))


def test_the_same_tokens_cut_in_another_way_are_refused(recipe, trained):
    (trained / STATE / CHECKSUMS).unlink()
    path = trained / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8"))
    rules["model"]["merges"] = rules["model"]["merges"][::-1]
    path.write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(UserError, match=r"the same tokens, but another way of cutting text into them\n"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))
    tokenizer = AutoTokenizer.from_pretrained(trained)
    tokenizer.eos_token = "a"
    tokenizer.save_pretrained(trained)
    with pytest.raises(UserError, match="cutting text into them and another start, end or padding symbol"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"missing weights: model\.norm\.weight"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "weights left over: extra"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}),
            r"of another shape .*model\.norm\.weight.*3.*16",
        ),
    ],
)
def test_weights_that_are_missing_left_over_or_of_another_shape(recipe, trained, change, named):
    (trained / STATE / CHECKSUMS).unlink()
    path = trained / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=named):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))
    assert not recipe("run.name=second").run.path.exists()


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "nobody/nothing"])
def test_nothing_there(recipe, name):
    with pytest.raises(UserError, match=rf"training\.init_from='{name}'"):
        pretrain(recipe(f"training.init_from={name}"))


def test_a_flipped_bit_is_found_where_there_are_checksums(recipe, trained):
    path = trained / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    config = recipe("run.name=second", "training.steps=1", f"training.init_from={trained}")
    with pytest.raises(UserError, match=r"is damaged \(model\.safetensors does not fit its checksum\)"):
        pretrain(config)
    assert not config.run.path.exists()
    (trained / STATE / CHECKSUMS).unlink()  # what the message says to do for what was changed on purpose
    assert pretrain(config).checkpoint.is_dir()


def test_a_damaged_folder_and_other_models(recipe, trained):
    (trained / STATE / CHECKSUMS).unlink()
    (trained / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"training\.init_from=.*its weights cannot be read"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))
    path = trained / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"quantization_config": {"quant_method": "x"}}), encoding="utf-8")
    with pytest.raises(UserError, match="its weights are quantized"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))
    path.write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    with pytest.raises(UserError, match="a model of type 'llama'"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"training\.init_from=.*cannot be read"):
        pretrain(recipe("run.name=second", f"training.init_from={trained}"))


def test_the_command_has_an_option_for_it(recipe, trained, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(config_yaml(recipe("run.name=second", "training.steps=1")), encoding="utf-8")
    assert main(["pretrain", "--config", str(path), "--init-from", str(trained), "epsilon.start=null"]) == 0
    assert f"weights:    from {trained}" in capsys.readouterr().out


def test_what_is_known_beforehand_is_refused_before_the_data_is_prepared(recipe, trained, tmp_path, monkeypatch):
    """And a path that is not there is named as a path, also where it could be a name on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("She was the youngest of the two daughters. " * 100, encoding="utf-8")
    data = "data={prepare: {sources: [{path: book.txt}], output: prepared, vocab_size: 270}, sequence_length: 16}"
    names = {path.name for path in trained.parent.parent.iterdir()}
    refusals = {
        "run.resume=must": "There is no checkpoint in .*second and run.resume=must",
        "training.init_from=./nowhere": "init_from='./nowhere': there is no such folder",
        "training.init_from=runs/frist": "there is no such folder in runs; did you mean 'first'",
        f"training.init_from={trained.parent}": "there is no config.json in that folder",
        "training.init_from=nobody/nothing": "init_from='nobody/nothing': it cannot be read",
    }
    for override, says in refusals.items():
        with pytest.raises(UserError, match=says) as caught:
            pretrain(recipe("run.name=second", data, override))
        assert "huggingface.co" not in str(caught.value) or "nobody" in override
    with pytest.raises(UserError, match="hidden_size: 16 in the checkpoint, 32 in the recipe"):
        pretrain(recipe("run.name=second", data, f"training.init_from={trained}", "model.hidden_size=32"))
    assert not (tmp_path / "prepared").exists()
    assert {path.name for path in trained.parent.parent.iterdir()} == names
