"""The command, with real runs of a few steps."""

import json
import os
from pathlib import Path

import pytest
import torch
from made_up_studies import write_study

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.cli import main
from hybridlm.errors import UserError
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


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    write_study(tmp_path, ONE)
    (tmp_path / "held.txt").write_text("the ship went past and the sea was calm " * 20)
    return tmp_path


def test_from_the_study_to_the_page_and_again(work, capsys):
    words = ["compare", "study.yaml", "--text", "held.txt", "--out", "out", "--workers", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "begins: final 'both' lr 0.01 seed 5" in said
    assert "| `both` |" in said
    [kept] = Store("out").records()
    assert (kept["steps"], kept["tokens"], kept["seed"]) == (3, 3 * 2 * 16, 5)
    assert [row["length"] for row in kept["test"]["by_context"]] == [4, 8]
    assert kept["test"]["texts"] == ["held.txt"]
    assert kept["command"].startswith("hybridlm pretrain --config recipe.yaml ")
    assert "optimizer.lr=0.01 training.seed=5" in kept["command"]
    assert (work / "out" / "study.md").is_file()
    assert (work / "out" / "runs" / "final-both-lr0.01-seed5" / "final" / "model.safetensors").is_file()
    assert main(words) == 0
    assert "1 runs are on record; 0 are due now." in capsys.readouterr().out


def test_a_run_that_diverges_is_a_result_and_one_that_breaks_is_not(work, capsys):
    (work / "study.yaml").write_text(ONE.replace("[0.01]", "[1e30]").replace("lengths: [4, 8]", ""))
    assert main(["compare", "study.yaml", "--out", "out", "--workers", "1"]) == 0
    assert "FAILED, the loss or a gradient was not finite" in capsys.readouterr().out
    (work / "out" / "runs" / "final-both-lr0.01-seed5").write_text("in the way")
    (work / "study.yaml").write_text(ONE.replace("lengths: [4, 8]", ""))
    assert main(["compare", "study.yaml", "--out", "out", "--workers", "1"]) == 2
    captured = capsys.readouterr()
    assert "STOPPED, it ended with exit code" in captured.out
    assert "1 runs did not come to their end" in captured.err
    assert len(Store("out").records()) == 1


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
