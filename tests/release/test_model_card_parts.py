"""The parts of a model card that no run decides: rights, citation, template, Markdown."""

import re
from pathlib import Path

import pytest
import yaml

import hybridlm
from hybridlm.release import card
from hybridlm.release.model_card.markdown import block, code, table
from hybridlm.release.model_card.memory import mixers_of, repeated
from hybridlm.release.model_card.rights import MEMORY_UNITS, bibtex, patent_notice

ROOT = Path(hybridlm.__file__).parents[1]
NO_CARDS = {
    ROOT / "model_cards" / f"{name}.md" for name in ("README", "template", "memory_suite", "memory_suite_findings")
}


def bib(text, field):
    return [value.strip("{}") for value in re.findall(rf"^  {field} = \{{(.*)\}},?$", text, flags=re.MULTILINE)]


def test_the_citation_is_that_of_the_repository():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = said["references"]
    text = bibtex(["rglru", "bmru"])
    assert bib(text, "title") == [said["title"], paper["title"]]
    assert bib(text, "version") == [said["version"]]
    assert bib(text, "license") == [said["license"]]
    assert bib(text, "url") == [paper["url"]]
    assert bib(text, "year") == [str(paper["year"])]
    names = " and ".join(each["family-names"] for each in paper["authors"])
    assert bib(text, "author") == [said["authors"][0]["name"], names]
    assert "@article" not in bibtex(["rglru", "attention"])


@pytest.mark.parametrize("mixer", MEMORY_UNITS)
def test_the_patent_notice_is_that_of_the_notice(mixer):
    notice = " ".join((ROOT / "NOTICE").read_text(encoding="utf-8").split())
    said = patent_notice(["rglru", mixer])
    assert said in notice
    assert said.startswith("The memory recurrent unit")
    assert all(number in said for number in ("EP26151077", "EP26175243.0", "EP26175248.9", "US 63/897,109"))
    assert f"`{mixer}`" in said


def test_others_have_no_patent_notice():
    assert patent_notice(["rglru", "nfsm", "mamba2", "attention"]) == ""


def test_the_template_stands_among_the_cards():
    packaged = Path(hybridlm.__file__).parent / "release" / "model_card" / "template.md"
    assert (ROOT / "model_cards" / "template.md").resolve() == packaged
    assert packaged.is_file()


@pytest.mark.parametrize("path", sorted({*(ROOT / "model_cards").glob("*.md")} - NO_CARDS), ids=lambda path: path.name)
def test_the_cards_of_the_repository_are_as_they_were_made(path):
    text = path.read_text(encoding="utf-8")
    assert card.is_full_card(text), "a word was changed by hand: make it anew with `hybridlm card --out`"
    picture = f"{path.stem}_curves.png"
    assert (picture in text) == path.with_name(picture).is_file()


def test_markdown_that_names_cannot_break():
    assert code("a`b") == "`` a`b ``"
    assert code("a\nb\x00c") == "`a b c`"
    assert code("") == "` `"
    assert block(["a", "```", "b"], "yaml") == "````yaml\na\n```\nb\n````"
    assert table(["a", "b"], [[code("<|x|>"), "one\ntwo"]]) == "| a | b |\n| --- | --- |\n| `<\\|x\\|>` | one two |"
    assert table(None, []) == ""


@pytest.mark.parametrize(
    ("layers", "unit"),
    [
        (["rglru", "bmru"] * 3, "rglru bmru"),
        (["lru"] * 4, "lru"),
        (["lru", "lru", "bmru"], "lru lru bmru"),
        (["rglru+bmru"], "rglru+bmru"),
    ],
)
def test_what_a_stack_repeats(layers, unit):
    assert repeated(layers) == unit


def test_mixers_are_named_once():
    assert mixers_of(["rglru+bmru", "bmru", "attention"]) == ["rglru", "bmru", "attention"]


def test_a_seal_breaks_with_any_word():
    text = card.sealed("\n".join(["---", "a: 1", "---", card.open_seal("card"), "", "words", ""]))
    assert card.is_full_card(text)
    assert card.sealed(text) == text
    for other in (text.replace("words", "word"), text + " ", text.replace("a: 1", "a: 2")):
        assert card.is_own_card(other)
    assert card.is_full_card(card.sealed(text.replace("words", "others")))
