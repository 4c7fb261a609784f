"""The commands of docs/running.md, run in their order in an empty folder, on a small text and recipe."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest

from hybridlm.cli import main
from hybridlm.training import signals
from hybridlm.training.checkpoints import checkpoints

PAGE = (Path(__file__).parents[1] / "docs" / "running.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
RECIPE = """
data:
  prepare: {sources: [{path: my_texts}], output: prepared/mine, vocab_size: 270, validation: {by: position, share: 0.1}}
  sequence_length: 16
model: {pattern: rglru bmru, hidden_size: 16, num_attention_heads: 2}
training: {steps: 6, batch_size: 2}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_texts").mkdir()
    words = [
        "the ",
        "sea ",
        "was ",
        "calm ",
        "and ",
        "a ",
        "grey ",
        "ship ",
        "went ",
        "past ",
        "our ",
        "old ",
        "house. ",
    ]
    text = "".join(random.Random(0).choices(words, k=900))
    (tmp_path / "my_texts" / "one.txt").write_text(text, encoding="utf-8")
    (tmp_path / "my_recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def run(line: str) -> int:
    program, *words = shlex.split(line)
    assert program == "hybridlm"
    return main(words)


def test_they_do_what_the_page_says(work, capsys):
    dry, start, again, report, both = COMMANDS
    before = sorted(path.name for path in work.rglob("*"))
    assert run(dry) == 0
    assert sorted(path.name for path in work.rglob("*")) == before
    assert "parameters" in capsys.readouterr().out
    assert run(start) == 0
    assert "finished" not in capsys.readouterr().out
    assert checkpoints(work / "runs" / "long")
    assert run(again) == 0
    assert "finished" in capsys.readouterr().out
    assert run("hybridlm pretrain --config my_recipe.yaml run.name=short training.steps=3") == 0
    assert run(report) == 0
    assert (work / "runs" / "long" / "report.html").stat().st_size > 10_000
    assert run(both) == 0
    assert (work / "both.html").stat().st_size > 10_000


def test_the_table_of_exit_codes_is_that_of_the_signals():
    row = next(line for line in PAGE.splitlines() if line.startswith("| Ctrl-C"))
    _, names, _, codes, _ = (cell.strip() for cell in row.split("|"))
    stops = dict(zip(names.split("; "), codes.split("; "), strict=True))
    stops["SIGINT"] = stops.pop("Ctrl-C")
    assert {name: int(code) for name, code in stops.items()} == {
        number.name: 128 + number for number in signals.STOPPING
    }


def test_a_checkpoint_is_a_model_of_its_own(work):
    """What a run leaves is read by `info` wherever it lies."""
    assert run(COMMANDS[1]) == 0
    (work / "runs" / "long" / "checkpoints" / "step-00000006").rename(work / "elsewhere")
    assert run("hybridlm info elsewhere") == 0
    assert json.loads((work / "elsewhere" / "training_state" / "state.json").read_text())["step"] == 6
