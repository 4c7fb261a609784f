"""Two processes train as one does, and a checkpoint goes on under another number of processes."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import config_yaml
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

SETTINGS = (
    "training.steps=6",
    "training.batch_size=8",
    "training.micro_batch_size=2",
    "checkpoint.every=3",
    "validation={every: 3, at_start: true, max_windows: null, batch_size: 3}",
    "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2}",
    "training.z_loss=1e-2",
    "logging.memory_every=2",
)


def in_two(config, folder: Path, name: str = "two_processes.py") -> list[dict]:
    """Runs the recipe in two processes of the script `name`; what each of them wrote down."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(config_yaml(config), encoding="utf-8")
    done = launch([Path(__file__).with_name(name), recipe, folder], ranks=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def losses_of(config) -> dict[tuple[int, bool], float]:
    rows = read_rows(config.run.path / "metrics.jsonl")
    return {(row["step"], "bits_per_byte" in row): row["loss"] for row in rows}


def training_rows(config) -> list[dict]:
    return [row for row in read_rows(config.run.path / "metrics.jsonl") if "lr" in row]


@pytest.fixture
def one_and_two(recipe, tmp_path):
    one, two = recipe(*SETTINGS, "run.name=one"), recipe(*SETTINGS, "run.name=two")
    pretrain(one)
    return one, two, in_two(two, tmp_path / "facts")


def test_two_processes_train_as_one(one_and_two, recipe):
    one, two, facts = one_and_two
    assert [fact["rank"] for fact in facts] == [0, 1]
    assert all(fact["worlds"] == [2, 2, 2] for fact in facts)
    assert facts[0]["validation"] == facts[1]["validation"]
    expected, found = losses_of(one), losses_of(two)
    assert len(expected) == 6 + 3
    assert found == pytest.approx(expected, abs=1e-5)
    for rows in zip(*(training_rows(config) for config in (one, two)), strict=True):
        assert rows[1]["z_loss"] == pytest.approx(rows[0]["z_loss"], rel=1e-5)
        assert rows[1].get("memory") == rows[0].get("memory")
        assert ("memory" in rows[0]) == (rows[0]["step"] % 2 == 0)
    weights, same = (load_file(config.run.path / "final" / "model.safetensors") for config in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(same[name], tensor, rtol=0, atol=1e-4)

    # What two processes saved after step 3 goes on in one.
    half = checkpoints(two.run.path)[0]
    third = recipe(*SETTINGS, "run.name=third")
    (third.run.path / "checkpoints").mkdir(parents=True)
    (two.run.path / "metrics.jsonl").rename(third.run.path / "metrics.jsonl")
    half.rename(third.run.path / "checkpoints" / half.name)
    pretrain(third)
    assert losses_of(third) == pytest.approx(expected, abs=1e-5)


def test_two_processes_agree_on_averages_and_an_early_end(recipe, tmp_path):
    """With Muon, whose bf16 iterations make rounding visible: each process has the same average and stops at once."""
    settings = (
        *SETTINGS, "training.batch_size=4", "optimizer={kind: muon, lr: 1e-3}", "training.ema_decay=0.5",
        "validation={every: 1, patience: 2, at_start: true, max_windows: null, batch_size: 3}",
        "validation.min_improvement=10",
    )  # fmt: skip
    one, two = recipe(*settings, "run.name=one"), recipe(*settings, "run.name=two")
    pretrain(one)
    facts = in_two(two, tmp_path / "facts")
    assert facts[0]["validation"] == facts[1]["validation"]
    states = [
        json.loads((config.run.path / "final" / "training_state" / "state.json").read_text(encoding="utf-8"))
        for config in (one, two)
    ]
    assert [(state["step"], state["stopped_early"], state["processes"]) for state in states] == [
        (2, True, 1), (2, True, 2),
    ]  # fmt: skip
    for name in ("final", "final-ema", "best"):
        weights, same = (load_file(config.run.path / name / "model.safetensors") for config in (one, two))
        for key, tensor in weights.items():
            torch.testing.assert_close(same[key], tensor, rtol=0, atol=5e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_processes_name_the_tensor_that_one_of_them_has(recipe, tmp_path, parallel):
    config = recipe(*SETTINGS, f"parallel.kind={parallel}")
    facts = in_two(config, tmp_path / "facts", "two_divergences.py")
    assert [fact["rank"] for fact in facts] == [0, 1]
    cell = "model.layers.1.mixer.cells.0"
    weight = f"the gradient of the weight {cell}.candidate.weight"
    for kind, name in {"forward": f"{cell} (BmruCell)", "backward": f"{cell} (BmruCell)", "weight": weight}.items():
        message = facts[0][kind]
        assert facts[1][kind] == message
        assert "Stopped at step 2 of 6, before the weights were changed." in message
        assert name in message
        assert "of 2 on process 1" in message
        text = (config.run.path.parent / kind / "diverged.json").read_text(encoding="utf-8")
        report = json.loads(text)
        expected = ("backward", 1, f"{cell}.candidate.weight") if kind == "weight" else (kind, 1, cell)
        assert (report["kind"], report["process"], report["tensor"]) == expected
        assert report["message"] == message


def test_the_launched_script_joins_two_processes(recipe, tmp_path):
    """The README's line for two processes on CPUs, as it is typed."""
    config = recipe("training.steps=2", "run.name=launched")
    path = tmp_path / "recipe.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    script = Path(__file__).parents[2] / "scripts" / "pretrain.py"
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    done = launch([*launcher, script, "--config", path], env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    state = json.loads((config.run.path / "final" / "training_state" / "state.json").read_text(encoding="utf-8"))
    assert (state["processes"], state["step"]) == (2, 2)
