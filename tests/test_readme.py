"""What README.md, CONTRIBUTING.md and the pages of docs say can be done: Python runs, commands parse, files exist,
links lead somewhere, recipes are read."""

import inspect
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

import hybridlm
from hybridlm import cli
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.model.mixers_hybridlm import CELLS, MIXERS
from hybridlm.training.config import config_help, load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
EVERYTHING = "\n\n".join(PAGES.values())
TABLE = re.compile(r"^\|.*(?:\n\|.*)+", re.MULTILINE)


def blocks(text, language):
    """The fenced blocks of a language ("" for commands), unindented."""
    found = []
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL):
        if match[2] == language:
            found.append("\n".join(line.removeprefix(match[1]) for line in match[3].splitlines()))
    return found


def commands():
    lines = [line for block in blocks(EVERYTHING, "") for line in block.splitlines()]
    return sorted({line.strip() for line in lines if line.strip()})


def run_python(page, folder, monkeypatch):
    """Runs the Python blocks of a page one after the other in `folder`; the names that they leave."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names = {"__name__": "example"}
    for number, code in enumerate(blocks(PAGES[page], "python")):
        exec(compile(code, f"{page}, Python block {number + 1}", "exec"), names)
    return names


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    names = run_python("README.md", tmp_path, monkeypatch)
    assert (tmp_path / "my-model" / "config.json").is_file()
    assert names["written"].shape[0] == 2
    assert torch.isfinite(names["rest"]).all()


# transformers' exporters copy torch's tree of inputs, which names a class of its own by an old name.
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_the_examples_of_using_run(tmp_path, monkeypatch):
    names = run_python("docs/using.md", tmp_path, monkeypatch)
    following = names["following"]["input_ids"]
    with torch.no_grad():
        logits = names["model"](torch.cat([names["tokens"], following], 1)).logits[:, -1:]
    assert torch.allclose(names["step_logits"], logits, atol=1e-4)
    assert (tmp_path / "my-onnx" / "step" / "model.onnx").is_file()
    assert names["answers"].shape[0] == 3


def test_the_tutorial_runs(tmp_path, monkeypatch):
    """The cell of docs/own_mixer.md, as a file of its own, and through what the page does with it."""
    monkeypatch.delitem(CELLS, "leaky", raising=False)
    monkeypatch.delitem(MIXERS, "leaky", raising=False)
    page = "docs/own_mixer.md"
    try:
        names = run_python(page, tmp_path, monkeypatch)
        assert MIXERS["leaky"] is names["LeakyCell"]
        assert (tmp_path / "my-leaky" / "model.safetensors").is_file()
        lines = [line for code in blocks(PAGES[page], "python")[:2] for line in code.splitlines() if line.strip()]
        assert len(lines) <= 60  # what its title promises
    finally:
        CELLS.pop("leaky", None)
        MIXERS.pop("leaky", None)


def test_no_page_has_python_that_is_not_run():
    run = {"README.md", "docs/using.md", "docs/own_mixer.md", "docs/serving.md"}  # the last one by test_pages.py
    assert {name for name, text in PAGES.items() if blocks(text, "python")} == run


@pytest.mark.parametrize("line", [line for line in commands() if re.match(r"(\S*/)?hybridlm ", line)])
def test_hybridlm_commands_parse(line):
    words = shlex.split(line)
    options = cli.build_parser().parse_args(words[[word.endswith("hybridlm") for word in words].index(True) + 1 :])
    assert callable(options.run)


def inline():
    """What stands in the running text as code, one line each."""
    prose = re.sub(r"^ *```.*?^ *```$", "", EVERYTHING, flags=re.MULTILINE | re.DOTALL)
    return sorted({" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)})


@pytest.mark.parametrize("code", [code for code in inline() if re.match(r"hybridlm [a-z]|python scripts/", code)])
def test_options_in_the_text_are_options(code):
    program, name, *words = code.split()
    given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
    if program == "hybridlm":
        parser = cli.build_parser().commands[name]
        assert given <= set(parser._option_string_actions), code
    else:
        source = (ROOT / name).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in given), code


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_is_known_here(line):
    """A line that no other test reads would rot unseen."""
    assert re.match(
        r"(printf '[^']*' \| )?hybridlm |\.venv/bin/hybridlm |make \w+$|torchrun |(\w+=\w+ )?accelerate launch "
        r"|git clone |python -c |sed ",
        line,
    )


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -c ")])
def test_lines_of_python_run(line, capsys):
    _, _, code = shlex.split(line)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_the_readme_is_short_and_has_every_page():
    assert len(README.splitlines()) < 400
    for name in PAGES:
        assert name == "README.md" or f"]({name})" in README


def anchors(text):
    """The names of a page's headings in links, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            name = path.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(PAGES[name]), target


def test_no_number_is_left_open():
    assert "@@" not in EVERYTHING


def test_the_figures_of_the_readme_are_those_of_the_page_of_performance():
    """They were copied; new ones on that page without new ones here are seen."""
    section = README.split("## Performance\n")[1].split("\n## ")[0]
    training, generation = (table.splitlines() for table in TABLE.findall(section))
    page = PAGES["docs/performance.md"]
    for (head, _, *rows), pick in ((training, r"^([\d,]+) \("), (generation, r"/ ([\d,]+) /")):
        for row in rows:
            name, *figures = cells(row)
            theirs = measured(page, name, pick)
            assert figures == [theirs.get(column, "not run") for column in cells(head)[1:]], row


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def measured(page, name, pick):
    """Column -> figure of the first table of the page whose cells look like `pick` in the row of `name`."""
    for table in TABLE.findall(page):
        head, _, *rows = map(cells, table.splitlines())
        for row in rows:
            found = {column: m[1] for column, cell in zip(head, row, strict=True) if (m := re.search(pick, cell))}
            if row[0] == name and found:
                return found
    raise AssertionError(f"no row {name}")


def test_files_that_are_named_exist():
    named = set(re.findall(r"\b(?:configs|scripts|tests|model_cards|docs)/[\w/.]+\w", EVERYTHING))
    named |= set(re.findall(r"\bhybridlm/data/[\w/]+\.txt\b", EVERYTHING))
    for run, _ in cli.COMMANDS.values():
        named |= set(re.findall(r"\b(?:configs|scripts)/[\w/.]+\w", run.__doc__))
    assert {"configs/debug/austen_rglru_bmru.yaml", "hybridlm/data/austen/persuasion.txt"} <= named
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_optional_parts_are_installed_from_the_clone():
    """No package index has the package; every extra that is named exists."""
    assert "hybridlm[" not in EVERYTHING
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"pip install -c constraints\.txt '\.\[(\w+)\]'", EVERYTHING)
    named += [name for source in (ROOT / "hybridlm").rglob("*.py") for name in re.findall(
        r"install_command\(['\"](\w+)['\"]\)", source.read_text(encoding="utf-8")
    )]  # fmt: skip
    assert {"eval", "peft", "plot", "track"} <= set(named) <= set(extras)


def test_fields_of_a_recipe_that_are_named_are_fields():
    known = set(re.findall(r"^  ([a-z_.]+) \(", config_help(), flags=re.MULTILINE))
    sections = sorted({name.partition(".")[0] for name in known})
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+)(?:[=:][^`]*)?`", EVERYTHING)
    named += [word.partition("=")[0] for line in commands() for word in line.split() if re.match(r"[a-z_.]+=", word)]
    for name in named:
        if "." in name and not name.endswith(".json"):  # model.safetensors.index.json
            assert any(f"{field}.".startswith(f"{name}.") for field in known) or name.startswith("model."), name
    assert len(set(named)) > 20


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bhybridlm(?:\.[A-Za-z_]\w*)+(?!\.(?:so|py)\b)", EVERYTHING))))
def test_names_of_the_package_that_are_named_are_there_and_say_what_they_are(name):
    found = pkgutil.resolve_name(name)
    assert inspect.getdoc(found) or isinstance(found, str), name


def test_tasks_of_memory_that_are_named_are_tasks():
    table = next(table for table in TABLE.findall(PAGES["docs/memory.md"]) if "trained at" in table)
    first = " ".join(cells(row)[0] for row in table.splitlines()[2:])
    named = {name.replace("_T", "_50") for name in re.findall(r"`(\w+)`", first)}
    unknown = {name for name in named if not any(task in (name, f"mnist{name}") for task in TASKS)}
    assert not unknown
    assert len(named) > 20


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^\s*make (\w+)$", EVERYTHING, flags=re.MULTILINE))
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
    layers = {"twelve": 12, "four": 4, "one": 1, "fifteen": 15}
    row = next(line for line in README.splitlines() if line.startswith(f"| `{pattern}` |"))
    count = next(number for word, number in layers.items() if f"{word} layer" in row)
    assert hybridlm.HybridLMConfig(pattern=pattern).num_hidden_layers == count


def test_the_table_of_mixers_is_complete():
    table = README.split("| mixer |")[1].split("\n\n")[0]
    named = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, flags=re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(named))) == set(MIXERS)
