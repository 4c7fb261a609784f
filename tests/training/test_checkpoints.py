"""Folders and files that are whole or absent."""

import pytest

from hybridlm.files import replace_file, write_folder
from hybridlm.training.checkpoints import (
    STATE,
    checkpoint_path,
    checkpoints,
    prune,
    remove_leftovers,
)


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


def test_checkpoints_come_in_order_and_torn_ones_do_not_count(tmp_path):
    for step in (200, 3, 100_000_000):
        write_folder(checkpoint_path(tmp_path, step), fill_with("x"))
    checkpoint_path(tmp_path, 300).mkdir()
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 200, 100_000_000)]


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        write_folder(checkpoint_path(tmp_path, step), fill_with("x"))
    prune(tmp_path, keep=2)
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 2), checkpoint_path(tmp_path, 3)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    whole = checkpoint_path(tmp_path, 1)
    write_folder(whole, fill_with("x"))
    for name in ("checkpoints/.step-00000002.partial-7", ".final.partial-7", ".final.old-7"):
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.partial-7").write_text("x", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert list((tmp_path / "checkpoints").iterdir()) == [whole]


def test_replace_file(tmp_path):
    path = tmp_path / "a.txt"
    replace_file(path, "one")
    replace_file(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "two"
    assert list(tmp_path.iterdir()) == [path]
