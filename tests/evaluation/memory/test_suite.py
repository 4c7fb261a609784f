"""The suite as a whole: plans, workers, records, and what a second call does."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch

from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.evaluation.memory import suite
from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.recipe import Recipe, read_settings, recipe_from
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.running import run
from hybridlm.evaluation.memory.store import Store

TINY = recipe_from({"steps": 2, "width": 8})


def jobs(*mixers, seeds=(0,), recipe=TINY):
    return suite.plan(["copy_first_50"], mixers, seeds, True, recipe)


def test_second_call_does_what_is_left(tmp_path):
    lines = []
    store = Store(tmp_path)
    assert suite.do(jobs("bmru"), store, lines.append) == 1
    assert suite.do(jobs("bmru", "lru", seeds=(0, 1)), store, lines.append) == 3
    assert suite.do(jobs("bmru", "lru", seeds=(0, 1)), store, lines.append) == 0
    assert len(store.records()) == 4
    assert sum(line.startswith("[") for line in lines) == 4
    assert "4 of 4 runs are in" in lines[-1]


def test_other_settings_are_other_runs(tmp_path):
    store = Store(tmp_path)
    suite.do(jobs("bmru"), store, lambda _: None)
    changed = recipe_from({"steps": 2, "width": 8, "threshold_init": 0.5})
    assert suite.do(jobs("bmru", recipe=changed), store, lambda _: None) == 1
    assert [record["changed"].get("threshold_init") for record in store.records()] == [None, 0.5]


def test_run_of_another_version_is_done_again(tmp_path, monkeypatch):
    store = Store(tmp_path)
    suite.do(jobs("bmru"), store, lambda _: None)
    monkeypatch.setattr(CopyFirst, "version", 2)
    assert suite.do(jobs("bmru"), store, lambda _: None) == 1
    assert suite.do(jobs("bmru"), store, lambda _: None) == 0
    (record,) = store.records()
    assert record["settings"]["task_version"] == 2


@pytest.mark.parametrize("text", ["length_start=2", "longest=8192", "to_first_error=true"])
def test_fields_of_automata_are_refused_elsewhere(text):
    with pytest.raises(UserError, match=f"set {text}: corridor is no automaton"):
        suite.plan(["z2", "corridor"], ["bmru"], [0], True, recipe_from(read_settings([text])))


def test_a_longest_length_that_changes_nothing_is_refused():
    """It would be a change of the recipe, and so a run of its own with the results of another."""
    own = TASKS["z2"](True).tests()[-1].length
    with pytest.raises(UserError, match=rf"set longest={own}: z2 is followed so far anyway\. Leave it out"):
        suite.plan(["z2"], ["bmru"], [0], True, recipe_from({"longest": own}))
    assert suite.plan(["z2"], ["bmru"], [0], False, recipe_from({"longest": own}))


def test_failed_run_does_not_end_the_others(tmp_path, monkeypatch):
    def failing(task, mixer, *arguments, **keywords):
        if mixer == "lru":
            raise RuntimeError("no memory\nand more")
        return run(task, mixer, *arguments, **keywords)

    monkeypatch.setattr(suite, "run", failing)
    lines = []
    with pytest.raises(UserError, match=r"1 of 2 runs failed.*tries them again"):
        suite.do(jobs("lru", "bmru"), Store(tmp_path), lines.append)
    assert lines[0].startswith("2 runs to do, 1 at a time, beginning with copy_first_50 'lru' seed 0.")
    assert "copy_first_50 'lru'" in lines[1]
    assert lines[1].endswith("seed 0: FAILED, RuntimeError: no memory")
    assert [record["mixer"] for record in Store(tmp_path).records()] == ["bmru"]


def test_data_that_is_not_there_is_known_before_the_first_run(monkeypatch):
    def nothing(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", nothing)
    with pytest.raises(UserError, match="Name the task without 'full'"):
        suite.plan(["copy_first_50", "mnist_full"], ["bmru"], [0], True, TINY)


def test_mixer_has_one_name():
    (job,) = suite.plan(["copy_first_50"], ["rglru + bmru", "rglru+bmru"], [0], True, TINY)
    assert job.mixer == "rglru+bmru"


def test_record(tmp_path):
    store = Store(tmp_path)
    suite.do(jobs("lru bmru"), store, lambda _: None)
    (record,) = store.records()
    assert (record["task"], record["form"], record["mixer"], record["seed"]) == (
        "copy_first_50",
        "quick",
        "lru bmru",
        0,
    )
    assert (record["steps"], record["rows"]) == (2, 32)
    assert record["changed"] == {"steps": 2, "width": 8}
    assert record["settings"].items() >= {"steps": 2, "rows": 32, "width": 8, "lr": 3e-3, "threshold_init": 1.0}.items()
    assert [test["length"] for test in record["tests"]] == [51, 501, 5001]
    assert all(test["asked"] == test["rows"] for test in record["tests"])


def test_workers_give_the_same_records(tmp_path):
    here, workers = Store(tmp_path / "here"), Store(tmp_path / "workers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        suite.do(jobs("bmru", seeds=(0, 1)), here, lambda _: None)
    finally:
        torch.set_num_threads(threads)
    suite.do(jobs("bmru", seeds=(0, 1)), workers, lambda _: None, workers=2)

    def results(store):
        return sorted((record["seed"], record["loss"], json.dumps(record["tests"])) for record in store.records())

    assert results(here) == results(workers)


def test_ctrl_c_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "hybridlm.cli", "memory-suite", "--quick", "--tasks", "copy_first_600"]
    command += ["--mixers", "lru", "--workers", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    try:
        end = time.monotonic() + 60
        # Itself, its resource tracker, the server that workers are forked from, two workers.
        while len(_members(process.pid)) < 5 and time.monotonic() < end:
            time.sleep(0.2)
        started = _members(process.pid)
        assert len(started) >= 5
        assert all(_deaf_to_ctrl_c(member) for member in started if member != process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out.decode().endswith(f"Runs that were done are in {tmp_path}; the same command goes on from there.\n")
        assert b"stopped by Ctrl-C" in said
        assert b"Traceback" not in said
    finally:
        process.kill()  # where the test failed
        process.stdout.close()
        process.stderr.close()  # which would be a warning in another test
    end = time.monotonic() + 20
    while _members(process.pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert not _members(process.pid)


def _members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = pathlib.Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(name))
    return found


def _deaf_to_ctrl_c(process: int) -> bool:
    """Whether SIGINT is blocked or ignored, from the start on, not only once its imports are done."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigIgn"))]
    return any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


def test_tasks_by_wildcard():
    assert suite.tasks_named(["copy_first_5*", "copy_first_50"]) == ["copy_first_50"]
    assert set(suite.default_tasks()) <= set(TASKS)
    with pytest.raises(UserError, match=r"task 'copy_frist_50'.*did you mean 'copy_first_50'"):
        suite.tasks_named(["copy_frist_50"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixers", "bmrru"], "mixer 'bmrru'"),
        (["--mixers", "bmru,,lru"], "mixers='bmru,,lru': a name is missing"),
        (["--mixers", ""], "mixers='': a name is missing"),
        (["--tasks", ""], "tasks='': a name is missing"),
        (["--mixers", "bmru,bmru"], "'bmru' is there twice"),
        (["--seeds", "0,x"], "seeds='0,x'"),
        (["--seeds", "-1"], "seeds='-1'"),
        (["--seeds", "3000000000000"], "seeds='3000000000000'"),
        (["--workers", "0"], "workers=0"),
        (["--device", "cuda:77"], "device='cuda:77'"),
        (["--device", "meta"], "device='meta'"),
        (["--set", "lr=-1"], "set lr=-1"),
    ],
)
def test_refused_before_anything_is_done(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["memory-suite", "--quick", "--tasks", "copy_first_50", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_records_below_a_file_are_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["memory-suite", "--quick", "--tasks", "copy_first_50", "--mixers", "lru", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "file" / "new" / "out")]) == 2
    assert f"cannot be written to ({tmp_path}/file is a file)" in capsys.readouterr().err


def test_command_ends_with_tables_and_a_page(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["memory-suite", "--quick", "--tasks", "copy_first_50", "--mixers", "bmru, lru", "--out", str(out)]
    command += ["--seeds", "0", "--workers", "1", "--set", "steps=1", "--set", "width=8"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "[2/2, " in said
    assert "lru, steps=1, width=8" in said
    assert f"Written to {out / 'memory_suite.md'}" in said
    assert "--set steps=1 --set width=8" in (out / "memory_suite.md").read_text()

    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["memory_page.py", "--records", str(out), "--page", str(page)])
    assert runpy.run_path("scripts/memory_page.py")["main"]() == 0
    assert page.read_text().startswith("# Memory suite")
    monkeypatch.setattr(sys, "argv", ["memory_page.py", "--records", str(tmp_path / "none"), "--page", str(page)])
    assert runpy.run_path("scripts/memory_page.py")["main"]() == 2
    assert "there is no record" in capsys.readouterr().err


def test_a_killed_worker_is_named(tmp_path):
    def killed(line):
        if not line.startswith("["):  # what is said beforehand
            return
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"workers=2: one was killed"):
        suite.do(jobs("bmru", seeds=range(60)), Store(tmp_path), killed, workers=2)
    assert Store(tmp_path).records()


def test_list_names_every_task(capsys):
    assert main(["memory-suite", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(TASKS)


class Short(CopyFirstSymbol):
    """Without the longest test, and with few rows."""

    def tests(self):
        return [dataclasses.replace(test, rows=4) for test in super().tests()[:2]]


@pytest.mark.parametrize("mixer", suite.MIXERS)
def test_every_mixer_runs(mixer):
    result = run(Short(50, quick=True), mixer, 0, Recipe(steps=1, width=32))
    assert result["loss"] is not None
    assert [test["asked"] for test in result["tests"]] == [4, 4]


def test_bistable_units_hold_where_linear_ones_forget():
    """The claim of the project, in small: at 100 times the length of the training."""
    results = {}
    for mixer in ("bmru", "lru"):
        tests = run(CopyFirstSymbol(50, quick=True), mixer, 0, Recipe(steps=250))["tests"]
        results[mixer] = {test["name"]: test["wrong"] / test["asked"] for test in tests}
    assert results["bmru"]["1x"] < 0.05
    assert results["lru"]["1x"] < 0.05
    assert results["bmru"]["100x"] < 0.05
    assert results["lru"]["100x"] > 0.5
