"""The benchmark of the memory estimate: its recipes are read, a run is measured, a failure is a row."""

import json

import pytest

from hybridlm.bench import memory
from hybridlm.training.config import load_config


@pytest.mark.parametrize("name", memory.RECIPES)
def test_recipes_are_read(name, tmp_path):
    overrides = [*memory._common(tmp_path), *memory.RECIPES[name], f"data.prepare.output={tmp_path}"]
    config = load_config(None, [*overrides, "training.steps=3"])
    assert config.training.batch_size == 8
    assert config.validation.max_windows == 4


def test_a_run_is_estimated_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [*memory._common(tmp_path), *memory.QUICK["tiny"], f"data.prepare.output={tmp_path / 'data'}"]
    cell = memory.MemoryCell([*overrides, "training.steps=2", "run.name=one"], returned=True)
    assert cell.prepare() == {}
    found = cell.measure()
    assert found["estimated"] == cell.estimate.memory.total > 500_000
    assert found["measured"] >= 0
    assert (tmp_path / "runs" / "one" / "final").is_dir()


class Failing:
    """A process that cannot do what it is asked."""

    def __init__(self, *_):
        pass

    def wait(self):
        pass

    def call(self, *_):
        raise memory.Problem("RuntimeError: out of memory")

    def close(self):
        pass


def test_a_run_that_fails_is_a_row_with_its_problem(monkeypatch):
    monkeypatch.setattr(memory, "Apart", Failing)
    lines: list[str] = []
    result = memory.measure(quick=True, steps=1, progress=lines.append)
    assert [row["problem"] for row in result["rows"]] == ["RuntimeError: out of memory"] * 2
    assert len(lines) == 2
    assert "out of memory" in memory.table(result)
    json.dumps(result)


def test_the_table():
    row = {"recipe": "wide", "gradient_checkpointing": True, "estimated_bytes": 2**21, "in_use_bytes": 2**20}
    row |= {"held_bytes": 3 * 2**20, "ratio": 2.0}
    assert memory.table({"rows": [row]}).splitlines()[1].split() == ["wide", "yes", "2", "1", "2.00", "3"]
