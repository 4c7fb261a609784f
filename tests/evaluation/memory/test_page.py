"""The page: everything that was run is on it, with the command that runs it, and it is whole or not there."""

import re
import shlex
import sys

import pytest
from memory_records import MIXERS, TOO_LONG, errors, failing, record, skipped, squares

from hybridlm import cli
from hybridlm.errors import UserError
from hybridlm.evaluation.memory.commands import commands
from hybridlm.evaluation.memory.page import findings_path, write_page
from hybridlm.evaluation.memory.recipe import named_settings
from hybridlm.evaluation.memory.registry import definition
from hybridlm.evaluation.memory.summary import summarize


@pytest.fixture
def records():
    """All mixers on two tasks of one family, one on a formal one; a second form; ablations; failures."""
    made = []
    for seed in (0, 1):
        for mixer in MIXERS:
            last = skipped("100x", 10_001) if mixer == "attention" else squares("100x", 10_001, 0.5)
            made.append(record([squares("1x", 51, 0.25), squares("100x", 5001, 0.5)], "copy_first_50", mixer, seed))
            made.append(record([squares("1x", 101, 0.25), last], "copy_first_100", mixer, seed))
        made.append(record([squares("1x", 51, 0.75)], seed=seed, changed={"lr": 0.001, "threshold_init": 0.25}))
        made.append(record([squares("1x", 51, 0.875)], seed=seed, changed={"gated": False}))
    made.append(record([failing(100)], "s3", "bmru", seed=4, steps=200, loss=None))
    made.append(record([failing(100)], "s3", "lru", seed=4, steps=200, device="cuda", threads=2))
    made.append(record([errors("1x", 51, 5, 10)], "unheard_of", "own", seed=4, form="standard"))
    made.append(record([squares("1x", 51, 0.125)], "copy_first_50", "lru", seed=0, form="standard"))
    return made


@pytest.fixture
def page(records, tmp_path):
    return write_page(records, tmp_path / "cards" / "memory_suite.md", None).read_text(encoding="utf-8")


def blocks(text):
    return [line for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]


def test_every_command_is_there_once_and_parses(page):
    twelve = ",".join(MIXERS)
    assert blocks(page) == [
        f'hybridlm memory-suite --mixers "{twelve}" --tasks copy_first_50,copy_first_100 --seeds 0,1 --quick',
        'hybridlm memory-suite --mixers "lru" --tasks copy_first_50 --seeds 0',
        'hybridlm memory-suite --mixers "bmru,lru" --tasks s3 --seeds 4 --quick',
        'hybridlm memory-suite --mixers "own" --tasks unheard_of --seeds 4',
        'hybridlm memory-suite --mixers "bmru" --tasks copy_first_50 --seeds 0,1 --quick --set gated=false',
        'hybridlm memory-suite --mixers "bmru" --tasks copy_first_50 --seeds 0,1 --quick --set lr=0.001 '
        "--set threshold_init=0.25",
    ]
    for line in blocks(page):
        cli.build_parser().parse_args(shlex.split(line)[1:])


def test_the_commands_run_every_record_once_and_nothing_else(records):
    records.append(record([squares("1x", 51, 1)], "copy_first_50", "gru", seed=7))
    records.append(record([squares("1x", 51, 1)], "denoising", "gru", seed=0))
    runs = []
    for line in commands(summarize(records)):
        words = shlex.split(line)
        given = dict(zip(words[2::2], words[3::2], strict=False)) if "--quick" not in words else {}
        given = given or dict(zip(words[2:8:2], words[3:8:2], strict=True))
        form = "quick" if "--quick" in words else "standard"
        sets = tuple(words[at + 1] for at, word in enumerate(words) if word == "--set")
        for task in given["--tasks"].split(","):
            for mixer in given["--mixers"].split(","):
                runs += [(task, form, mixer, int(seed), sets) for seed in given["--seeds"].split(",")]
    expected = []
    for each in records:
        sets = {"lr": "0.001", "threshold_init": "0.25", "gated": "false"}
        sets = tuple(f"{name}={sets[name]}" for name in sorted(each["changed"]))
        expected.append((each["task"], each["form"], each["mixer"], each["seed"], sets))
    assert sorted(runs) == sorted(expected)


def test_the_command_of_models_that_were_kept_keeps_them():
    made = [record([failing(9)], "s3", "bmru", seed=seed, kept=True) for seed in (0, 1)]
    made += [record([failing(9)], "s3", "lru"), record([failing(9)], "z2", "bmru", kept=True)]
    assert commands(summarize(made)) == [
        'hybridlm memory-suite --mixers "bmru" --tasks z2 --seeds 0 --quick --keep',
        'hybridlm memory-suite --mixers "bmru" --tasks s3 --seeds 0,1 --quick --keep',
        'hybridlm memory-suite --mixers "lru" --tasks s3 --seeds 0 --quick',
    ]


def test_every_mixer_is_there_and_what_was_run(page):
    sizes = page.partition("| mixer | parameters, by task |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^|]+) \|", sizes, flags=re.MULTILINE) == [*MIXERS, "own"]
    assert "- quick form: 54 runs, 3 tasks, seeds 0, 1, 4\n- trained for 200 – 400 steps\n" in page
    assert "- 459 seconds in total, on cpu (1 thread), cuda (2 threads)\n" in page
    assert "- standard form: 2 runs, 2 tasks, seeds 0, 4\n- trained for 400 steps\n- 17 seconds in total" in page
    assert page.count("- versions: hybridlm 0.1.0, torch 2.13.0") == 2
    assert page.count("Trained for 400 steps of 32 sequences.") == 3
    assert page.count("Trained for 200 steps of 32 sequences.") == 1


def test_tasks_that_were_trained_differently_are_told_apart(tmp_path):
    made = [record([failing(9)], "z2", steps=1000), record([failing(9)], "s3"), record([failing(9)], "a5")]
    page = write_page(made, tmp_path / "page.md", None).read_text(encoding="utf-8")
    assert "Trained for 1,000 steps of 32 sequences (z2); 400 steps of 32 sequences (s3, a5)." in page


def test_sections_are_in_order(page):
    heads = re.findall(r"^## (.*)", page, flags=re.MULTILINE)
    assert heads == [
        "What was run",
        "Overview",
        "Copying the first number",
        "Formal languages and groups",
        "unheard_of",
        "Ablations",
        "Failures",
    ]
    assert re.findall(r"^### (.*)", page, flags=re.MULTILINE) == [
        "Copying the first number, quick form",
        "Copying the first number, standard form",
    ]


def test_each_task_is_defined_once_and_has_its_table(page):
    text = definition("copy_first_50")
    assert text.startswith("Copy the first input")
    assert "\n" not in text
    assert f"**copy_first_50, copy_first_100**: {text}" in page
    assert page.count(text) == 1
    assert definition("unheard_of") is None
    assert "| bmru | 0.250 | 0.500 |" in page
    assert "| attention | 0.250 | n/a <sup>1</sup> |" in page
    assert "| Mamba variant, published | 186 |" in page


def test_the_definition_of_a_task_that_a_function_makes_is_its_docstring(monkeypatch):
    def word_problem(order, quick):
        """The product so far,
        of elements.

        More."""

    from functools import partial

    from hybridlm.evaluation.memory import registry

    monkeypatch.setitem(registry.TASKS, "z3", partial(word_problem, 3))
    assert definition("z3") == "The product so far, of elements."


def test_ablations_stand_beside_the_standard_recipe(page):
    text = page.partition("## Ablations")[2].partition("## Failures")[0]
    rows = [line for line in text.splitlines() if line.startswith("| bmru")]
    assert rows == [
        "| bmru, standard | 0.250 | 0.500 |",
        "| bmru, gated=false | 0.875 | - |",
        "| bmru, lr=0.001, threshold_init=0.25 | 0.750 | - |",
    ]


def test_failures_are_said(page, tmp_path):
    assert page.partition("## Failures")[2].strip().splitlines() == [
        "- diverged in training: s3, quick form, bmru, seed 4",
        f"- skipped, attention: copy_first_100 100x ({TOO_LONG})",
    ]
    good = write_page([record([squares("1x", 51, 1)])], tmp_path / "good.md", None).read_text(encoding="utf-8")
    assert good.endswith("## Failures\n\nNo run diverged, and no test was skipped.\n")
    assert "## Ablations" not in good


def test_findings_are_taken_in_as_they_stand(records, tmp_path):
    path = tmp_path / "memory_suite.md"
    prose = "## Findings\n\n| a | b |\n|---|---|\n| *it* holds | 1 |"
    findings_path(path).write_text(prose + "\n", encoding="utf-8")
    assert findings_path(path).name == "memory_suite_findings.md"
    page = write_page(records, path, None).read_text(encoding="utf-8")
    assert f"\n\n{prose}\n\n## Copying the first number\n" in page
    assert findings_path(path).read_text(encoding="utf-8") == prose + "\n"


def test_pictures_are_linked_from_where_the_page_stands(tmp_path):
    made = [record([squares("1x", 51, 0.25)], mixer="bmru"), record([failing(100)], "s3", "bmru")]
    page = write_page(made, tmp_path / "cards" / "memory_suite.md", tmp_path / "docs" / "pictures")
    links = re.findall(r"!\[.+\]\((.+)\)", page.read_text(encoding="utf-8"))
    assert links == [f"../docs/pictures/{name}_quick.png" for name in ("overview", "copy_first", "formal_failing")]
    assert all((page.parent / link).is_file() for link in links)


def test_without_records_or_matplotlib_an_older_page_stays(records, tmp_path, monkeypatch):
    path = tmp_path / "memory_suite.md"
    path.write_text("older", encoding="utf-8")
    with pytest.raises(UserError, match="there is no record"):
        write_page([], path, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="need matplotlib"):
        write_page(records, path, tmp_path / "pictures")
    assert path.read_text(encoding="utf-8") == "older"


def test_a_place_that_cannot_be_written_is_said(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_page(records, tmp_path / "file" / "page.md", None)


def test_a_page_is_the_same_whatever_order_its_records_are_in(records, page, tmp_path):
    again = write_page(records[::-1], tmp_path / "cards" / "again.md", None).read_text(encoding="utf-8")
    assert again == page


def test_a_named_recipe_has_a_section_of_its_own(tmp_path):
    """With the command by its name, and a row for each change beside it."""
    recipe = named_settings("finite-state")
    made = [
        record([failing(None)], "s3", "nfsm", changed=recipe),
        record([failing(None)], "z16", "nfsm", changed={**recipe, "nfsm_states": 16}),
        record([failing(90)], "z16", "nfsm", changed=recipe),
        record([failing(7)], "s3", "nfsm", changed={"lr": 0.001}),
        record([failing(8)], "s3", "nfsm", changed={**recipe, "layers": 2}),
        record([failing(9)], "s3", "nfsm", changed={k: v for k, v in recipe.items() if k != "to_first_error"}),
    ]
    page = write_page(made, tmp_path / "memory_suite.md", None).read_text(encoding="utf-8")
    section = page.partition("## Recipe finite-state, quick form")[2].partition("## Ablations")[0]
    assert blocks(section) == [
        'hybridlm memory-suite --mixers "nfsm" --tasks z16,s3 --seeds 0 --quick --recipe finite-state',
        'hybridlm memory-suite --mixers "nfsm" --tasks z16 --seeds 0 --quick --recipe finite-state '
        "--set nfsm_states=16",
        'hybridlm memory-suite --mixers "nfsm" --tasks s3 --seeds 0 --quick --recipe finite-state --set layers=2',
        'hybridlm memory-suite --mixers "nfsm" --tasks s3 --seeds 0 --quick --recipe finite-state '
        "--set to_first_error=false",
    ]
    assert [row for row in section.split("\n") if row.startswith("| nfsm")] == [
        "| nfsm | 90 | > 32,768 |",
        "| nfsm, nfsm_states=16 | > 32,768 | - |",
        "| nfsm, layers=2 | - | 8 |",
        "| nfsm, to_first_error=false | - | 9 |",
    ]
    assert "finite-state" not in page.partition("## Ablations")[2]
