"""What README.md and CONTRIBUTING.md say can be done: Python runs, commands parse, files exist, recipes are read."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from hybridlm import cli
from hybridlm.training.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text, language):
    """The fenced blocks of a language ("" for commands), unindented."""
    found = []
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL):
        if match[2] == language:
            found.append("\n".join(line.removeprefix(match[1]) for line in match[3].splitlines()))
    return found


def commands():
    lines = [line for text in (README, CONTRIBUTING) for block in blocks(text, "") for line in block.splitlines()]
    return sorted({line.strip() for line in lines if line.strip()})


# transformers' exporters copy torch's tree of inputs, which names a class of its own by an old name.
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    examples = blocks(README, "python")
    assert len(examples) >= 2
    names = {}
    for number, code in enumerate(examples):
        exec(compile(code, f"README.md, Python block {number + 1}", "exec"), names)
    assert (tmp_path / "my-model" / "config.json").is_file()
    assert names["written"].shape[0] == 2
    following = names["following"]["input_ids"]
    with torch.no_grad():
        logits = names["model"](torch.cat([names["tokens"], following], 1)).logits[:, -1:]
    assert torch.allclose(names["step_logits"], logits, atol=1e-4)
    assert (tmp_path / "my-onnx" / "step" / "model.onnx").is_file()


@pytest.mark.parametrize("line", [line for line in commands() if re.match(r"(\S*/)?hybridlm ", line)])
def test_hybridlm_commands_parse(line):
    words = shlex.split(line)
    options = cli.build_parser().parse_args(words[[word.endswith("hybridlm") for word in words].index(True) + 1 :])
    assert callable(options.run)


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_is_known_here(line):
    """A line that no other test reads would rot unseen."""
    assert re.match(
        r"hybridlm |\.venv/bin/hybridlm |make \w+$|torchrun |(\w+=\w+ )?accelerate launch |git clone |python -c ", line
    )


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -c ")])
def test_lines_of_python_run(line, capsys):
    _, _, code = shlex.split(line)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_no_number_is_left_open():
    assert "@@" not in README


def test_files_that_are_named_exist():
    named = set(re.findall(r"\b(?:configs|scripts|tests|model_cards)/[\w/.]+\w", README + CONTRIBUTING))
    named |= set(re.findall(r"\bhybridlm/data/[\w/]+\.txt\b", README))
    for run, _ in cli.COMMANDS.values():
        named |= set(re.findall(r"\b(?:configs|scripts)/[\w/.]+\w", run.__doc__))
    assert {"configs/debug/austen_rglru_bmru.yaml", "hybridlm/data/austen/persuasion.txt"} <= named
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_optional_parts_are_installed_from_the_clone():
    """No package index has the package; every extra that is named exists."""
    assert "hybridlm[" not in README + CONTRIBUTING
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"pip install -c constraints\.txt '\.\[(\w+)\]'", README)
    named += [name for source in (ROOT / "hybridlm").rglob("*.py") for name in re.findall(
        r"install_command\(['\"](\w+)['\"]\)", source.read_text(encoding="utf-8")
    )]  # fmt: skip
    assert {"eval", "peft", "plot", "track"} <= set(named) <= set(extras)


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^\s*make (\w+)$", README + CONTRIBUTING, flags=re.MULTILINE))
    assert named == {"demo", "test"}
    assert named <= targets


def test_the_recipe_is_read_and_its_fields_are_used(tmp_path):
    (recipe,) = blocks(README, "yaml")
    path = tmp_path / "my_recipe.yaml"
    path.write_text(recipe)
    config = load_config(path)
    assert config.run.name == "my_recipe"  # the page says runs/my_recipe
    assert str(config.data.prepare.output) == "prepared/mine"
    assert config.training.epochs == 4
    changed = load_config(path, ["training.epochs=8", "optimizer.lr=1e-3", "run.name=longer"])
    assert (changed.training.epochs, changed.optimizer.lr, changed.run.name) == (8, 1e-3, "longer")


@pytest.mark.parametrize("pattern", re.findall(r"^\| `([^`]*[ +*(][^`]*)` \|", README, flags=re.MULTILINE))
def test_patterns_of_the_table_are_patterns(pattern):
    from hybridlm import HybridLMConfig

    layers = {"twelve": 12, "four": 4, "one": 1, "fifteen": 15}
    row = next(line for line in README.splitlines() if line.startswith(f"| `{pattern}` |"))
    count = next(number for word, number in layers.items() if f"{word} layer" in row)
    assert HybridLMConfig(pattern=pattern).num_hidden_layers == count


def test_the_table_of_mixers_is_complete():
    from hybridlm.model.mixers_hybridlm import MIXERS

    table = README.split("| mixer |")[1].split("\n\n")[0]
    named = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, flags=re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(named))) == set(MIXERS)
