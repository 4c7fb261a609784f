"""`hybridlm evaluate --lengths`: what goes together, and where the results go."""

import json
import shutil
import sys

import pytest

from hybridlm.cli import main


@pytest.fixture
def work(tmp_path, monkeypatch, checkpoint, long_text):
    """An empty working folder with the checkpoints one and two, and book.txt."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(checkpoint, tmp_path / name)
    (tmp_path / "book.txt").write_text(long_text, encoding="utf-8")
    return tmp_path


def refused(capsys, *argv):
    """The one message with which the command ends in exit code 2."""
    assert main(["evaluate", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hybridlm evaluate: ")
    assert captured.out == ""
    return captured.err


def test_numbers_and_picture_lie_beside_the_checkpoint(work, capsys):
    assert main(["evaluate", "one", "--text", "book.txt", "--lengths", "8,32,64"]) == 0
    out = capsys.readouterr().out
    folder = work / "one" / "evaluation"
    assert {path.name for path in folder.iterdir()} == {"book-lengths-8-64.json", "book-lengths-8-64.png"}
    facts = json.loads((folder / "book-lengths-8-64.json").read_text())
    assert facts["texts"] == ["book.txt"]
    assert facts["checkpoints"][0]["in_words"] in out
    assert out.endswith("Picture: one/evaluation/book-lengths-8-64.png\n")


def test_several_checkpoints_and_texts(work, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shutil.copy("book.txt", "other.txt")
    argv = ["evaluate", "one", "two", "--text", "book.txt", "--text", "other.txt", "--lengths", "8,32"]
    assert main([*argv, "--out", "both.json"]) == 0
    out = capsys.readouterr().out
    assert "Written to both.json\nNo picture: Pictures need matplotlib" in out
    facts = json.loads((work / "both.json").read_text())
    assert [each["checkpoint"] for each in facts["checkpoints"]] == ["one", "two"]
    assert all(each["bits_per_byte"] == 0 for each in facts["better_than_the_first"])  # the same model twice
    assert "better than one" in out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--lengths", "8,32", "--context", "16"], "--context: has no meaning with --lengths; leave it out"),
        (["--lengths", "8,32", "--carry-state"], "--carry-state: has no meaning with --lengths"),
        (["--lengths", "8,32", "--limit", "3"], "--limit: has no meaning with --lengths"),
        (["--lengths", "8,x"], "'x' is no number of tokens"),
        (["--lengths", "-5,10"], "-5 is too short; must be at least 2 tokens"),
        (["--lengths", "32,8"], "8 comes after 32"),
        (["--lengths", "8,32", "--batch-size", "0"], "batch_size=0"),
        (["--lengths", "8,128k"], "the longest is 128k, the longest text, book.txt, has"),
        (["--lengths", "8,32", "--out", "picture.png"], "the numbers go there as JSON"),
        (["--lengths", "8,32", "--text", "missing.txt"], "missing.txt: cannot be read"),
        (["--text", "other.txt"], "--text: there are 2 files. Several go with --lengths only"),
    ],
)
def test_what_does_not_go_together_is_refused(work, capsys, more, says):
    assert says in refused(capsys, "one", "--text", "book.txt", *more)
    assert not (work / "one" / "evaluation").exists()


def test_several_checkpoints_need_lengths_and_a_place(work, capsys):
    assert "Several are compared with --lengths only" in refused(capsys, "one", "two", "--text", "book.txt")
    assert "Several are compared" in refused(capsys, "one", "two", "--tasks", "arc_easy")
    both = ("one", "two", "--text", "book.txt", "--lengths", "8,32")
    assert "Give --out FILE.json" in refused(capsys, *both)
    assert "--lengths: has no meaning with --tasks" in refused(capsys, "one", "--tasks", "a", "--lengths", "8,32")


def test_a_place_for_the_numbers_is_looked_at_first(work, capsys, monkeypatch):
    monkeypatch.setattr(
        "hybridlm.evaluation.lengths.measure.evaluate_lengths", lambda *_, **__: pytest.fail("measured")
    )
    argv = ("one", "--text", "book.txt", "--lengths", "8,32", "--out")
    assert "the folder new does not exist" in refused(capsys, *argv, "new/x.json")
    assert "Give --out FILE.json" in refused(capsys, "owner/model", *argv[1:-1])
