"""A run that is killed again and again ends as one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from comparing import assert_same

from hybridlm.training.checkpoints import checkpoints, damage
from hybridlm.training.config import config_yaml
from hybridlm.training.metrics import read_rows


def test_a_hundred_kills_change_nothing(recipe, tmp_path):
    """SIGKILL at 100 moments, most of them random, during saves too, and SIGTERM in validations: curve, weights and
    optimizer are those of a run in one go. What a single checkpoint holds is never lost."""
    config = recipe(
        "training.steps=20", "training.ema_decay=0.9",
        "checkpoint={every: 2, keep: 1, keep_every: 6}", "validation={every: 8, at_start: true}",
        "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2, attention_dropout: 0.2}",
        "logging.samples={every: 16, max_new_tokens: 4}",
    )  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(path), "100", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
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
