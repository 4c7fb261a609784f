"""The page as a file: what is in it, that it parses, that nothing of a text becomes HTML."""

import base64
import hashlib
import json

import numpy as np
import pytest
from inspector_pages import NASTY, Page, by_words

from hybridlm.evaluation.inspector.alignment import align
from hybridlm.evaluation.inspector.figures import unit_figures
from hybridlm.evaluation.inspector.page import render_page
from hybridlm.evaluation.inspector.recording import record


@pytest.fixture
def inspected(every_kind):
    spans = by_words(NASTY)
    recording = record(every_kind, spans.ids)
    figures, alignments = unit_figures(recording), align(recording, spans)
    return recording, spans, figures, alignments


@pytest.fixture
def page(inspected):
    return Page(render_page("<i>book</i>.txt", ["a fact & another"], *inspected))


def test_the_data_is_what_was_recorded(page, inspected):
    recording, spans, figures, alignments = inspected
    data = json.loads(page.raw["script", "data"])
    assert "".join(data["pieces"]) == NASTY
    assert len(data["pieces"]) == len(spans.ids)
    for name in ("positive", "zero", "writes"):
        bits = np.frombuffer(base64.b64decode(data[name]), dtype=np.uint8).reshape(64, -1)
        assert np.array_equal(bits, getattr(recording, name))
    assert [cell["kind"] for cell in data["cells"]] == ["bmru", "cmru", "acmru", "fqbmru"]
    assert [each["holds"] for each in data["figures"]] == [each.holds for each in figures]
    assert [each["name"] for each in data["features"]] == [each.feature.name for each in alignments]


def test_nothing_of_a_text_becomes_html(page):
    assert len(page.elements["script"]) == 2
    assert "i" not in page.elements
    assert page.raw["h1", None] == page.raw["title", None] == "<i>book</i>.txt"
    assert "a fact & another" in page.raw["p", None]


def test_only_the_script_and_the_style_of_the_page_are_allowed(page):
    (policy,) = [meta["content"] for meta in page.elements["meta"] if "http-equiv" in meta]
    for kind, element in (("script", ("script", None)), ("style", ("style", None))):
        digest = base64.b64encode(hashlib.sha256(page.raw[element].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    for elements in page.elements.values():
        assert not any("src" in attributes or attributes.get("href", "#")[0] != "#" for attributes in elements)


def test_the_best_units_are_linked(page, inspected):
    recording, _, _, alignments = inspected
    links = [each["href"] for each in page.elements["a"]]
    names = recording.names
    assert links == [f"#unit={names[unit]}" for each in alignments for unit in each.best]


def test_dead_and_always_writing_units_are_counted(by_hand, letters):
    recording, spans = by_hand([[1, 1], [1, 1], [1, -1]], [[0, 0], [1, 1], [0, 1]]), letters("a")
    text = render_page("x", [], recording, spans, unit_figures(recording), align(recording, spans))
    assert "3 memory units. 1 are dead: they never write. 1 are always-writing: at 99% of the tokens or more." in text
