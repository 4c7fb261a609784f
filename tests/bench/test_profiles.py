"""Where a step's time goes: every operation is counted once, under what it is for."""

import runpy
import sys
from pathlib import Path

import pytest
from launching import launch

from hybridlm import ops
from hybridlm.bench import profiles
from hybridlm.bench.peers import QUICK, fit
from hybridlm.ops import dispatch


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::mm_something_else", profiles.OTHERS),
        ("aten::mul", profiles.OTHERS),
        ("hybridlm::memory_backward", "scans"),
        ("_RglruBackward", "norms, gates, convolutions"),
        ("aten::_log_softmax_backward_data", "softmax and loss"),
        ("aten::_fused_adamw_", "optimizer"),
    ],
)
def test_kinds(name, kind):
    assert profiles.kind_of(name) == kind


def test_a_step_has_a_time_for_every_kind():
    spent = profiles.by_kind(fit("rglru bmru", **QUICK), 32, 2, steps=1)
    assert list(spent) == [*profiles.KINDS, profiles.OTHERS]
    assert all(milliseconds >= 0 for milliseconds in spent.values())
    kernels = ops.explain().startswith("cpu")
    for kind in ("matrix products", "softmax and loss", "optimizer", *(["norms, gates, convolutions"] * kernels)):
        assert spent[kind] > 0, kind


def test_table():
    spent = dict.fromkeys((*profiles.KINDS, profiles.OTHERS), 0.0) | {"scans": 30.0, "matrix products": 90.0}
    lines = profiles.table({"one": spent, "two": spent}).splitlines()
    assert lines[0] == "| milliseconds of a step | one | two |"
    assert "| scans | 30 (25%) | 30 (25%) |" in lines
    assert lines[-1] == "| **together** | **120** | **120** |"


def test_script():
    script = Path(__file__).parents[2] / "scripts" / "profile_training.py"
    done = launch([script, "--quick", "--length", "16", "--rows", "1"])
    assert done.returncode == 0, done.stderr
    assert "| matrix products |" in done.stdout
    assert [line for line in done.stderr.splitlines() if " of 3: " in line][-1] == "3 of 3: pure PyTorch"
    done = launch([script, "--model", "bmu"])
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "1 of 3: kernels, memory kept" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "Llama"],
            "error: model='Llama': must be one of this package. Choose from 'rglru bmru', 'lru bmru'",
        ),
        (
            ["--model", "lru bmrus"],
            "error: model='lru bmrus': must be one of this package; did you mean 'lru bmru'? Cho",
        ),
        (["--length", "1"], "error: length=1: must be at least 2"),
        (["--rows", "0"], "error: rows=0: must be at least 1"),
    ],
)
def test_the_script_refuses(words, message, monkeypatch, capsys):
    assert run(monkeypatch, *words) == 2
    assert capsys.readouterr().err.startswith(message)


def test_the_script_refuses_a_forced_path(monkeypatch, capsys):
    """It would time one path under the names of two."""
    monkeypatch.setattr(dispatch, "_from_environment", "torch")
    monkeypatch.setattr(dispatch, "_forced", "torch")
    assert run(monkeypatch, "--quick") == 2
    assert capsys.readouterr().err.startswith("error: HYBRIDLM_SCAN='torch': this compares")


def test_a_path_that_is_forced_around_it_is_kept(monkeypatch):
    seen = []
    monkeypatch.setattr(profiles.TrainingCell, "measure", lambda cell: seen.append(dispatch.forced()))
    size = fit("rglru bmru", **QUICK)
    with ops.using("torch"):
        profiles.by_kind(size, 8, 1, steps=1)
        profiles.by_kind(size, 8, 1, steps=1, path="reference")
    assert seen == ["torch", "torch", "reference", "reference"]


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["profile_training.py", *words])
    return runpy.run_path("scripts/profile_training.py")["main"]()
