"""The command, with real runs of a few steps."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import launch
from made_up_studies import write_study

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.evaluation.comparison import running
from hybridlm.evaluation.comparison.running import Store
from hybridlm.evaluation.comparison.study import read_study

ROOT = Path(__file__).parents[3]

ONE = """
recipe: recipe.yaml
models:
  both: {model.pattern: rglru bmru}
rates: [0.01]
search: {}
final: {training.steps: 3}
seeds: [5]
lengths: [4, 8]
"""


class Forked:
    """In place of subprocess.Popen: a process that is forked, and has ended once it is made."""

    def __init__(self, command, *, stdout, env, **_):
        done = launch(command[1:], env=env)
        stdout.write((done.stdout + done.stderr).encode())
        self.returncode = done.returncode

    def poll(self):
        return self.returncode


def start(monkeypatch, popen):
    """How a study starts its processes."""
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=popen))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    write_study(tmp_path, ONE)
    (tmp_path / "held.txt").write_text("the ship went past and the sea was calm " * 20)
    return tmp_path


def test_from_the_study_to_the_page_and_again(work, capsys, monkeypatch):
    start(monkeypatch, lambda words, **more: (subprocess.Popen if "pretrain" in words else Forked)(words, **more))
    words = ["compare", "study.yaml", "--text", "held.txt", "--out", "out", "--workers", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "begins: final 'both' lr 0.01 seed 5" in said
    assert "| `both` |" in said
    [kept] = Store("out").records()
    assert (kept["steps"], kept["tokens"], kept["seed"]) == (3, 3 * 2 * 16, 5)
    assert [row["length"] for row in kept["test"]["by_context"]] == [4, 8]
    assert kept["test"]["texts"] == ["held.txt"]
    assert kept["generation"]["position"] == 8
    assert kept["generation"]["tokens_per_second"] > 0
    assert len(kept["data"]) == 64
    assert kept["command"].startswith("hybridlm pretrain --config recipe.yaml ")
    assert "optimizer.lr=0.01 training.seed=5" in kept["command"]
    assert (work / "out" / "study.md").is_file()
    assert (work / "out" / "runs" / "final-both-lr0.01-seed5" / "final" / "model.safetensors").is_file()
    shutil.rmtree(work / "out" / "runs")  # elsewhere there are the records alone
    assert main(words) == 0
    assert "1 runs are on record; 0 are due now." in capsys.readouterr().out
    for old, new, differs in (("went past", "went by", "sha256"), ("lengths: [4, 8]", "lengths: [4, 16]", "lengths")):
        for file in ("held.txt", "study.yaml"):
            (work / file).write_text((work / file).read_text().replace(old, new))
        assert main(words) == 2
        assert f"is on record with {differs}" in capsys.readouterr().err
        for file in ("held.txt", "study.yaml"):
            (work / file).write_text((work / file).read_text().replace(new, old))
    recipe = (work / "recipe.yaml").read_text()
    (work / "recipe.yaml").write_text(recipe.replace("batch_size: 2", "batch_size: 1"))
    monkeypatch.setattr(running, "_Run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words) == 130
    assert "by another recipe, which does not count (training.batch_size: was 2, is now 1)." in capsys.readouterr().out


def test_a_run_that_diverges_is_a_result_and_one_that_breaks_is_not(work, capsys, monkeypatch):
    start(monkeypatch, Forked)
    (work / "study.yaml").write_text(ONE.replace("[0.01]", "[1e30]").replace("lengths: [4, 8]", ""))
    words = ["compare", "study.yaml", "--out", "out", "--workers", "1"]
    assert main(words) == 0
    assert "FAILED, the loss or a gradient was not finite at step 2 of 3" in capsys.readouterr().out
    told = (work / "out" / "runs" / "final-both-lr1e30-seed5" / "diverged.json").read_text()
    (work / "study.yaml").write_text(ONE.replace("lengths: [4, 8]", ""))
    broken = work / "out" / "runs" / "final-both-lr0.01-seed5"
    broken.mkdir()
    (broken / "diverged.json").write_text(told)  # of a session before
    (broken / "checkpoints").write_text("in the way")
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "STOPPED, it ended with exit code 2" in captured.out
    assert "1 runs did not come to their end" in captured.err
    assert len(Store("out").records()) == 1


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("backward", "the loss or a gradient was not finite at step 7 of 9"),
        ("spike", "the loss jumped at step 7 of 9"),
        ("validation", "the validation was not finite at step 7 of 9"),
    ],
)
def test_why_a_run_diverged_is_read_from_its_own_file(tmp_path, kind, why):
    assert running._stopped_by_itself(tmp_path) is None
    (tmp_path / "diverged.json").write_text(json.dumps({"kind": kind, "step": 7, "total_steps": 9}))
    assert running._stopped_by_itself(tmp_path) == why
    (tmp_path / "diverged.json").write_text('{"kind"')
    assert running._stopped_by_itself(tmp_path) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--text: the study has lengths"),
        (["--text", "none.txt"], "none.txt: there is no such file"),
        (["--text", "held.txt", "--workers", "0"], "workers=0"),
        (["--text", "held.txt", "--out", "held.txt"], "is a file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(work, capsys, words, said):
    assert main(["compare", "study.yaml", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (work / "runs").exists()


def test_a_torn_record_is_left_out_and_a_strange_file_refused(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    whole = {"model": "a", "stage": "final", "rate": 1, "seed": 0, "recipe": {}}
    store.path.write_text(json.dumps(whole) + '\n{"model": "a", "st')
    assert store.records() == [whole]
    store.add({**whole, "seed": 1})
    assert [record["seed"] for record in store.records()] == [0, 1]
    store.path.write_text('{"task": "z2"}\n')
    with pytest.raises(UserError, match="not written by `hybridlm compare`"):
        store.records()
    store.path = Path("/dev/full")
    if store.path.exists():
        with pytest.raises(UserError, match=r"cannot be written any more \(No space left"):
            store.add(whole)


def test_the_study_that_is_shipped_is_fair():
    """Models of the shipped study have equal parameters, within half a percent."""
    study = read_study(ROOT / "configs" / "compare" / "families_6m.yaml")
    counts = {}
    for model in study.models:
        config = study.config(model, "final", 1e-3, 0)
        with torch.device("meta"):
            built = HybridLMForCausalLM(HybridLMConfig(vocab_size=config.data.prepare.vocab_size, **config.model))
        counts[model] = sum(parameter.numel() for parameter in built.parameters())
    assert max(counts.values()) / min(counts.values()) < 1.01
    assert read_study(ROOT / "configs" / "compare" / "debug.yaml").models
