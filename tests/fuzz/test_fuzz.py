"""A few hundred inputs, always the same; `scripts/fuzz.py` tries as many as one likes."""

import runpy
import shutil
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from command_lines import LINES
from fuzzing import TARGETS, fuzz
from workshop import make

from hybridlm.cli import COMMANDS, build_parser
from hybridlm.evaluation.reading import read_book
from hybridlm.model import statefile_hybridlm

INPUTS = {"patterns": 200, "configurations": 100, "checkpoints": 60, "shards": 100, "states": 120, "recipes": 100}
INPUTS |= {"command lines": 120, "runs": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("fuzz") / "made")


@pytest.mark.parametrize("name", TARGETS)
def test_it_works_or_is_refused(name, made, tmp_path):
    result = fuzz(name, made, tmp_path, INPUTS[name])
    print(result)
    assert not result.faults, "\n".join(f"{fault}\n{how}" for fault, how in result.faults.items())
    assert result.inputs == INPUTS[name]
    assert result.outcomes["refused"] > min(10, INPUTS[name] // 10)
    assert result.outcomes["works"] > 2


def test_every_command_is_among_the_lines():
    assert {line.split()[0] for line in LINES} == set(COMMANDS)
    parser = build_parser()
    for line in LINES:
        parser.parse_args(line.split())


def test_a_fault_is_found(made, tmp_path, monkeypatch):
    """Without the checksum of the tensors, a changed byte of a state is believed."""
    monkeypatch.setattr(statefile_hybridlm, "_checksum", lambda tensors: 0)
    other = shutil.copytree(made, tmp_path / "made")
    with chdir(other):
        read_book("model", "short.txt", "book.state")
    result = fuzz("states", other, tmp_path, 200)
    assert any("a damaged state was taken for a whole one" in fault for fault in result.faults)


def test_the_script(monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "fuzz.py"
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--inputs", "60", "--only", "patterns", "--seed", "3"])
    assert runpy.run_path(str(script))["main"]() == 0
    assert capsys.readouterr().out.endswith("60 inputs, 0 faults\n")
