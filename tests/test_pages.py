"""The commands of README.md and of the pages of docs, run one behind the other where a reader would be: beside a clone,
with a small run in place of the demo's, small texts in place of books.

What would train for minutes is a dry run here, which builds the run and refuses what the run would refuse; studies and
the memory suite come as far as their first run. What needs the network, or the end of a long run, is parsed by
test_readme.py, and run by the tests that are named.
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoTokenizer

from hybridlm import cli
from hybridlm.cli import main
from hybridlm.model.mixers_hybridlm import CELLS, MIXERS

ROOT = Path(__file__).parents[1]
NAMES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
TEXT = (
    "She was the youngest of the two daughters of a most affectionate, indulgent father; and had, in consequence of "
    'her sister\'s marriage, been mistress of his house from a very early period.\n\n"It is a truth," said he.\n\n'
)
SMALLER = {
    "(rglru bmru)*4": "(rglru bmru)*2", "hidden_size: 256": "hidden_size: 48", "heads: 8": "heads: 4",
    "sequence_length: 512": "sequence_length: 32", "vocab_size: 4096": "vocab_size: 300", "epochs: 4": "epochs: 0.2",
}  # fmt: skip
"""What is changed in the README's recipe."""
ELSEWHERE = {
    "push": "tests/release/test_push.py, with a server",
    "evaluate --tasks": "tests/evaluation/test_harness.py, with tasks that need no network",
    "certify": "tests/evaluation/certificate, with models that were trained",
}
"""Commands that are not run here, and what runs them."""


def commands(page):
    """The lines of a page's blocks of commands that call `hybridlm` or printf into it, or `sed`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield from (line for line in block.splitlines() if re.match(r"hybridlm |printf |sed ", line))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a clone is, behind `make demo` and the README's training."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("configs", "scripts"):
        (place / name).symlink_to(ROOT / name)
    (place / "hybridlm" / "data" / "austen").mkdir(parents=True)
    for name in ("my_texts", "texts"):
        (place / name).mkdir()
    for name, times in (
        ("hybridlm/data/austen/persuasion.txt", 6),
        ("book.txt", 6),
        ("texts/emma.txt", 1),
        ("my_texts/one.txt", 40),
        ("held_out.txt", 45),
    ):
        (place / name).write_text(TEXT * times)
    (place / "prompts.jsonl").write_text('{"prompt": "It is a truth"}\n{"prompt": "She"}\n')
    recipe = re.search(
        r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    smaller = recipe[1]
    for field, value in SMALLER.items():
        assert field in smaller
        smaller = smaller.replace(field, value)
    (place / "my_recipe.yaml").write_text(smaller)
    with chdir(place):
        assert main(["pretrain", "--config", "my_recipe.yaml"]) == 0
    for name in ("demo/run", "short", "other"):
        shutil.copytree(place / "runs" / "my_recipe", place / "runs" / name)
    return place


@pytest.fixture
def hours(monkeypatch):
    """What trains many models is stopped, as by Ctrl-C, where its first one would begin; pictures stay empty (those
    of test_plots.py and test_run_report.py do not)."""

    def begin(*_):
        raise KeyboardInterrupt

    def save(figure, file, **_):
        Image.new("1", (1, 1)).save(file, "png")

    monkeypatch.setattr(Figure, "savefig", save)
    for name in ("memory.suite", "comparison.running"):
        monkeypatch.setattr(f"hybridlm.evaluation.{name}.do", begin)


def words_of(line):
    """(arguments behind `hybridlm`, what comes in through stdin)."""
    typed, _, command = line.rpartition(" | ")
    typed = shlex.split(typed)[1].replace("\\n", "\n") if typed else "It is\n/quit\n"
    return shlex.split(command)[1:], typed


def run_here(words):
    return not any(all(word in words for word in name.split()) for name in ELSEWHERE)


@pytest.mark.parametrize("page", [name for name in NAMES if any(commands(name))])
@pytest.mark.usefixtures("hours")
def test_the_commands_of_a_page_run(page, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    for line in commands(page):
        if line.startswith("sed "):
            subprocess.run(shlex.split(line), check=True)
            continue
        words, typed = words_of(line)
        if not run_here(words):
            continue
        if words[0] in ("generate", "chat") and "--max-new-tokens" not in words:
            words += ["--max-new-tokens", "3"]
        if words[0] == "pretrain" and ("configs/" in line or "training." in line):
            words += ["run.folder=elsewhere", "--dry-run"]
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(words)
        told = capsys.readouterr()
        assert code == (130 if words[0] in ("memory-suite", "compare") else 0), f"{line}\n{told.err}"
        assert told.out.strip(), line


def test_the_python_of_the_page_of_serving_runs_behind_its_export(clone, monkeypatch):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(clone)
    if not Path("served").exists():
        assert main(["export", "runs/demo/run/final", "served"]) == 0
    exec(compile(code, "docs/serving.md", "exec"), {})
    tokenizer = AutoTokenizer.from_pretrained("served", trust_remote_code=True)
    turns = [{"role": "user", "content": "She"}, {"role": "assistant", "content": " was"}]
    said = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert said == tokenizer(tokenizer.bos_token + "She was", add_special_tokens=False)["input_ids"]
    assert said[0] == tokenizer.bos_token_id


@pytest.mark.usefixtures("hours")
def test_the_command_knows_the_cell_of_the_tutorial(clone, monkeypatch, capsys):
    """The page's own lines, and not without the cell."""
    page = (ROOT / "docs" / "own_mixer.md").read_text(encoding="utf-8")
    cell = re.search(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for line in re.findall(r"`python my_hybridlm\.py ([^`]+)`", page)]
    assert [words[0] for words in lines] == ["pretrain", "memory-suite"]
    lines[0] += ["run.name=leaky", "--dry-run"]
    monkeypatch.chdir(clone)
    for names in (CELLS, MIXERS):
        monkeypatch.delitem(names, "leaky", raising=False)
    assert [main(words) for words in lines] == [2, 2]
    assert capsys.readouterr().err.count("unknown mixer 'leaky'") == 2
    try:
        exec(compile(cell[1], "leaky.py", "exec"), {"__name__": "leaky"})
        assert [main(words) for words in lines] == [0, 130]
    finally:
        for names in (CELLS, MIXERS):
            names.pop("leaky", None)


def test_what_is_run_elsewhere_is_a_command():
    assert {name.split()[0] for name in ELSEWHERE} <= set(cli.COMMANDS)
    for place in ELSEWHERE.values():
        assert (ROOT / place.partition(",")[0]).exists(), place
