"""The command: a page, a comparison, and one message for what cannot be done."""

import json
import shutil

import pytest

from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.inspection import inspect_checkpoint


@pytest.fixture
def book(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    return "book.txt"


@pytest.fixture
def model_folder(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    return "model"


def test_a_page_beside_the_checkpoint(model_folder, book, tmp_path, capsys):
    assert main(["inspect", model_folder, "--text", book, "--tokens", "100"]) == 0
    told = capsys.readouterr()
    assert "book.txt, 100 tokens from its beginning" in told.out
    assert "Memory units: 32, " in told.out
    assert "position in document" in told.out
    place = tmp_path / "model" / "evaluation" / "book-inspector.html"
    assert told.out.endswith("Written to model/evaluation/book-inspector.html\n")
    assert "<title>Memory units over book.txt</title>" in place.read_text(encoding="utf-8")
    facts = inspect_checkpoint(model_folder, book, out="page.html")
    assert facts["tokens"] > 100
    assert (tmp_path / "page.html").exists()


def test_what_a_link_to_the_page_shows(model_folder, book):
    def fragment(**choice):
        return inspect_checkpoint(model_folder, book, tokens=20, out="page.html", **choice)["fragment"]

    assert fragment() == ""
    assert fragment(unit="1.3", token=19) == "unit=1.3&token=19"
    with pytest.raises(UserError, match=r"unit 99\.1: there is none of that name\. .*: 1\.0 to 1\.31 \(bmru\)"):
        fragment(unit="99.1")
    with pytest.raises(UserError, match=r"unit 1: these are 32\. Give one, such as 1\.0"):
        fragment(unit="1")
    with pytest.raises(UserError, match="token=20: the page has the tokens 0 to 19"):
        fragment(token=20)


def test_a_comparison(model_folder, book, capsys):
    asked = ["inspect", model_folder, "--text", book, "--flip", "1.3,1.4", "--freeze", "1.5=-1", "--freeze", "1.6"]
    assert main([*asked, "--at", "20", "--max-new-tokens", "5", "--out", "change.json"]) == 0
    told = capsys.readouterr().out
    assert "Changed: flipped 1.3, 1.4; frozen 1.5=-1, 1.6, in front of token 20" in told
    with open("change.json", encoding="utf-8") as file:
        facts = json.load(file)
    assert (facts["flips"], facts["freezes"], facts["at"]) == (["1.3", "1.4"], {"1.5": -1.0, "1.6": None}, 20)
    assert len(facts["steps"]) == 5
    assert "".join(row["token"] for row in facts["steps"]) == facts["plain"]
    assert facts["units"] == 32
    assert repr(facts["changed"]) in told
    assert main([*asked, "--max-new-tokens", "2", "--temperature", "0.7", "--seed", "3"]) == 0
    assert "Written to model/evaluation/book-units.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "1"], "tokens=1: must be at least 2"),
        (["--flip", "7.1"], "unit 7.1: there is none of that name. Memory units of this model: 1.0 to 1.31 (bmru)."),
        (["--freeze", "1.1=up"], "--freeze 1.1=up: 'up' is no number. Give e.g. 1.1=+1, or 1.1 alone."),
        (["--freeze", "1.1=2"], "unit 1.1=2: the state of a bmru is -1 or +1."),
        (["--flip", "1.1", "--at", "100000"], "at=100000: the text has the tokens 0 to"),
        (["--flip", "1.1", "--at", "-1"], "at=-1: must be at least 0"),
        (["--flip", "1.1", "--temperature", "-1"], "temperature=-1.0: must be between 0"),
        (["--at", "3"], "--at: has no meaning without --flip or --freeze"),
        (["--out", "nowhere/page.html"], "--out nowhere/page.html: the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_done(model_folder, book, capsys, words, message):
    assert main(["inspect", model_folder, "--text", book, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_memory_units(build, tokenizer, book, capsys):
    build("lru").save_pretrained("lru")
    tokenizer.save_pretrained("lru")
    assert main(["inspect", "lru", "--text", book]) == 2
    assert "pattern='lru': the model has no memory unit to look at" in capsys.readouterr().err
    assert main(["inspect", "some/model", "--text", book]) == 2
    assert "the pictures have no place beside it. Give --out FILE.html" in capsys.readouterr().err
