"""A run that is killed again and again ends as one that was left alone."""

import json
from pathlib import Path

import torch
from comparing import assert_same
from launching import launch
from safetensors.torch import load_file

from hybridlm.training.checkpoints import STATE, checkpoints, damage
from hybridlm.training.config import config_yaml
from hybridlm.training.metrics import read_rows
from hybridlm.training.state import CARRIED


def killed(config, folder, kills):
    """Runs the recipe with so many kills, and once without, beside it as `whole`; what `killing.py` counted."""
    path = folder / "recipe.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    done = launch([Path(__file__).with_name("killing.py"), path, kills, 0], timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hundred_kills_change_nothing(recipe, tmp_path):
    """SIGKILL at 100 moments, most of them random, during saves too, and SIGTERM in validations: curve, weights and
    optimizer are those of a run in one go. What a single checkpoint holds is never lost."""
    config = recipe(
        "training.steps=20", "training.ema_decay=0.9",
        "checkpoint={every: 2, keep: 1, keep_every: 6}", "validation={every: 8, at_start: true}",
        "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2, attention_dropout: 0.2}",
        "logging.samples={every: 16, max_new_tokens: 4}",
    )  # fmt: skip
    counts = killed(config, tmp_path, 100)
    assert counts["kills"] == 100
    assert counts["torn"] >= 3, counts
    assert counts["resumed"] >= 30, counts
    assert counts["stopped"] >= 3, counts
    assert counts["aside"] >= 3, counts
    run, whole = config.run.path, config.run.path.with_name("whole")
    assert_same(run, whole)
    kept = [f"step-{step:08d}" for step in (6, 12, 18, 20)]
    for folder in (run, whole):
        assert [path.name for path in checkpoints(folder)] == kept
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == kept
        assert [damage(path) for path in [*checkpoints(folder), folder / "final"]] == [None] * 5
    assert read_rows(run / "samples.jsonl") == read_rows(whole / "samples.jsonl")


def test_kills_change_nothing_of_carried_states(recipe, tmp_path):
    """In the steps before anything is carried, and behind them."""
    config = recipe(
        "data.carry_state=true", "data.carry_restart=0.1", "training.steps=12", "training.micro_batch_size=2",
        "checkpoint={every: 2, keep: 1}", "epsilon={start: 1.0, hold: 0.1, zero: 0.3}",
        "model={pattern: rglru+bmru mamba2 nfsm, hidden_size: 16, mamba_d_head: 8}",
    )  # fmt: skip
    counts = killed(config, tmp_path, 12)
    assert counts["kills"] == 12
    assert counts["resumed"] >= 3, counts
    run, whole = config.run.path, config.run.path.with_name("whole")
    assert_same(run, whole)
    carried, same = (load_file(checkpoints(folder)[-1] / STATE / CARRIED) for folder in (run, whole))
    assert carried.keys() == same.keys()
    assert all(torch.equal(carried[name], tensor) for name, tensor in same.items())
