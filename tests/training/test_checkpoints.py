"""Folders and files that are whole or absent."""

import os
import subprocess
import sys

import pytest

from hybridlm.errors import UserError
from hybridlm.files import replace_file, write_folder
from hybridlm.training.checkpoints import (
    CHECKSUMS,
    STATE,
    checkpoint_path,
    checkpoints,
    damage,
    newest_valid,
    prune,
    remove_leftovers,
    write_sealed,
)
from hybridlm.training.lock import run_lock


def fill_with(text):
    def fill(folder):
        (folder / STATE).mkdir()
        (folder / STATE / "state.json").write_text(text, encoding="utf-8")

    return fill


def fail_half_way(folder):
    (folder / "model.safetensors").write_text("half", encoding="utf-8")
    raise OSError("disk full")


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        write_folder(checkpoint_path(tmp_path, 3), fail_half_way)
    assert everything_in(tmp_path) == ["checkpoints"]
    assert checkpoints(tmp_path) == []


def test_a_failed_save_leaves_the_older_folder_as_it_was(tmp_path):
    target = checkpoint_path(tmp_path, 3)
    write_folder(target, fill_with("old"))
    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail_half_way)
    assert (target / STATE / "state.json").read_text(encoding="utf-8") == "old"
    assert not list(target.parent.glob(".*"))


def test_an_interrupted_save_leaves_nothing(tmp_path):
    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "final", interrupted)
    assert everything_in(tmp_path) == []


def test_a_folder_is_replaced_by_a_whole_one(tmp_path):
    target = tmp_path / "final"
    write_folder(target, fill_with("old"))
    (target / "stray").write_text("x", encoding="utf-8")
    write_folder(target, fill_with("new"))
    assert everything_in(tmp_path) == ["final", f"final/{STATE}", f"final/{STATE}/state.json"]
    assert (target / STATE / "state.json").read_text(encoding="utf-8") == "new"


def test_checkpoints_come_in_order(tmp_path):
    for step in (200, 3, 100_000_000):
        write_sealed(checkpoint_path(tmp_path, step), fill_with("x"))
    for name in (".step-00000400.partial-7", "step-00000500.damaged", "step-last"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 200, 100_000_000)]


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip_a_bit, lambda path: path.unlink()], ids=["cut", "flipped", "removed"])
@pytest.mark.parametrize("name", ["model.safetensors", f"{STATE}/state.json", f"{STATE}/{CHECKSUMS}"])
def test_the_newest_valid_checkpoint_wins(tmp_path, harm, name):
    def fill(folder):
        fill_with("x" * 100)(folder)
        (folder / "model.safetensors").write_bytes(bytes(range(256)))

    for step in (1, 2, 3):
        write_sealed(checkpoint_path(tmp_path, step), fill)
    said = []
    assert newest_valid(tmp_path, said.append) == checkpoint_path(tmp_path, 3)
    assert said == []
    for step in (2, 3):
        harm(checkpoint_path(tmp_path, step) / name)
    assert newest_valid(tmp_path, said.append) == checkpoint_path(tmp_path, 1)
    assert [line.split(" is damaged ")[0] for line in said] == [str(checkpoint_path(tmp_path, n)) for n in (3, 2)]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002.damaged", "step-00000003.damaged"]


def test_a_run_never_starts_anew_over_damaged_checkpoints(tmp_path):
    assert newest_valid(tmp_path) is None
    for step in (1, 2):
        write_sealed(checkpoint_path(tmp_path, step), fill_with("x"))
        cut(checkpoint_path(tmp_path, step) / STATE / "state.json")
    with pytest.raises(UserError, match=r"No checkpoint .*is whole:\n.*step-00000002: .*\n.*step-00000001: "):
        newest_valid(tmp_path, lambda _: None)
    assert len(checkpoints(tmp_path)) == 2


def test_an_unsealed_folder_is_damaged(tmp_path):
    write_folder(checkpoint_path(tmp_path, 1), fill_with("x"))
    assert "checksums.json" in (damage(checkpoint_path(tmp_path, 1)) or "")


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        write_folder(checkpoint_path(tmp_path, step), fill_with("x"))
    prune(tmp_path, keep=2)
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 2), checkpoint_path(tmp_path, 3)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_removal_that_was_cut_short_does_not_come_back(tmp_path, monkeypatch):
    for step in (1, 2):
        write_folder(checkpoint_path(tmp_path, step), fill_with("x"))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        prune(tmp_path, keep=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [checkpoint_path(tmp_path, 2)]


def test_prune_keeps_every_nth_too(tmp_path):
    for step in range(2, 15, 2):
        write_folder(checkpoint_path(tmp_path, step), fill_with("x"))
    prune(tmp_path, keep=1, keep_every=6)
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (6, 12, 14)]


def test_one_process_at_a_time(tmp_path):
    run = tmp_path / "runs" / "one"
    hold = "import sys; from hybridlm.training.lock import run_lock; from pathlib import Path\n"
    hold += "with run_lock(Path(sys.argv[1])): print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"runs/one is in use by process {holder.pid} on "), run_lock(run):
            pass
        holder.kill()
    with run_lock(run):
        (run / "config.yaml").write_text("x", encoding="utf-8")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.yaml"]


def test_a_lock_leaves_nothing_where_nothing_came_of_it(tmp_path):
    with run_lock(tmp_path / "runs" / "one"):
        assert (tmp_path / "runs" / "one").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with run_lock(tmp_path / "runs" / "one"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    whole = checkpoint_path(tmp_path, 1)
    write_folder(whole, fill_with("x"))
    for name in ("checkpoints/.step-00000002.partial-7", "checkpoints/.step-00000001.old-7", ".final.partial-7"):
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.partial-7").write_text("x", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert list((tmp_path / "checkpoints").iterdir()) == [whole]


def test_an_older_folder_that_waited_for_a_newer_one_comes_back(tmp_path):
    """A process was killed between the two renames that put a new folder in the place of the old one: `best`, or a
    checkpoint whose validation came again, which may be the only one."""
    for name in (".best.old-7", ".best.partial-7", ".final-ema.old-7", "final-ema"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "says").write_text(name, encoding="utf-8")
    for name in (".step-00000008.old-7", ".step-00000008.partial-7", ".step-00000004.gone-7"):
        write_folder(tmp_path / "checkpoints" / name, fill_with(name))
    (tmp_path / ".report.html.partial-7").write_text("another program's", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".report.html.partial-7", "best", "checkpoints", "final-ema")
    ]
    assert list((tmp_path / "checkpoints").iterdir()) == [checkpoint_path(tmp_path, 8)]
    assert (checkpoint_path(tmp_path, 8) / STATE / "state.json").read_text() == ".step-00000008.old-7"
    assert [(tmp_path / name / "says").read_text() for name in ("best", "final-ema")] == [".best.old-7", "final-ema"]


def test_replace_file(tmp_path):
    path = tmp_path / "a.txt"
    replace_file(path, "one")
    replace_file(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "two"
    assert list(tmp_path.iterdir()) == [path]
