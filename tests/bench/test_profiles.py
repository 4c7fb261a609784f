"""Where a step's time goes: every operation is counted once, under what it is for."""

import subprocess
import sys

import pytest

from hybridlm import ops
from hybridlm.bench import profiles
from hybridlm.bench.peers import QUICK, fit


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
    command = [sys.executable, "scripts/profile_training.py", "--quick", "--length", "16", "--rows", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| matrix products |" in done.stdout
    done = subprocess.run([*command[:2], "--model", "bmu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr
