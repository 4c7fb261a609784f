"""Pattern strings: parse and render are inverse, and mistakes are shown where they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.model.mixers_hybridlm import CELLS, MIXERS, STANDALONE
from hybridlm.model.pattern_hybridlm import MAX_LAYERS, parse, render

cells = st.sampled_from(sorted(CELLS))
layers = st.one_of(st.sampled_from(sorted(STANDALONE)), st.lists(cells, min_size=1, max_size=3).map("+".join))


def read(pattern):
    return parse(pattern, MIXERS, STANDALONE)


@settings(max_examples=300, deadline=None)
@given(st.lists(layers, min_size=1, max_size=24))
def test_parse_inverts_render(stack):
    pattern = render(stack)
    assert read(pattern) == tuple(stack)
    assert render(read(pattern)) == pattern
    assert len(pattern) <= len(" ".join(stack)) + 2


@st.composite
def patterns(draw, depth=2):
    """(pattern, its layers), with nested repeats and odd spaces."""
    parts, stack = [], []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            inner, unit = draw(patterns(depth=depth - 1))
            inner = f"({inner})"
        else:
            inner = draw(layers)
            unit = [inner]
        count = draw(st.integers(1, 3))
        space = draw(st.sampled_from(["", " "]))
        parts.append(inner.replace("+", f"{space}+{space}") + (f"{space}*{space}{count}" if count > 1 else ""))
        stack += unit * count
    return "  ".join(parts), stack


@settings(max_examples=200, deadline=None)
@given(patterns())
def test_repeats_nest(case):
    pattern, stack = case
    assert read(f" {pattern} ") == tuple(stack)


@pytest.mark.parametrize(
    ("stack", "pattern"),
    [
        (["rglru", "bmru"] * 6, "(rglru bmru)*6"),
        (["lru", "lru", "bmru", "attention"], "lru*2 bmru attention"),
        (["rglru+bmru"] * 4, "(rglru+bmru)*4"),
        ((["rglru"] * 3 + ["bmru"]) * 2, "(rglru*3 bmru)*2"),
    ],
)
def test_render_finds_the_usual_forms(stack, pattern):
    assert render(stack) == pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("rglru bmur", r"unknown mixer 'bmur'; did you mean 'bmru'\? at position 6"),
        ("", "a mixer is missing at position 0"),
        ("()", "a mixer is missing at position 1"),
        ("(rglru", "'\\(' is not closed"),
        ("rglru)", "'\\)' without '\\('"),
        ("rglru*0", "whole number of at least 1"),
        ("rglru*", "whole number of at least 1"),
        ("rglru*bmru", "whole number of at least 1"),
        ("rglru,bmru", "unexpected character ','"),
        ("rglru+", "a mixer is missing"),
        ("rglru+(bmru lru)", "a mixer is missing"),
        ("rglru+attention", "cannot stand in 'a\\+b'"),
        (f"rglru*{MAX_LAYERS + 1}", "more than 4096 layers"),
        ("(" * 3000, "more than 32 brackets"),
        ("rglru*" + "9" * 5000, "more than 4096 layers"),  # Python reads no number as long
        ("rglru*\u0663", "unexpected character"),
        ("rglru*" + "0" * 5000, "whole number of at least 1"),
        ("(((rglru*4000)*4000)*4000)*4000", "more than 4096 layers"),
    ],
)
def test_mistakes_are_shown(pattern, message):
    with pytest.raises(ValueError, match=message):
        read(pattern)


def test_a_pattern_is_a_string():
    with pytest.raises(ValueError, match="must be a string"):
        read(["rglru"])
    with pytest.raises(ValueError, match="at least one layer"):
        render([])


def test_of_a_long_pattern_the_message_shows_the_place():
    pattern = "rglru " * 1000 + "bmur " + "rglru " * 1000
    with pytest.raises(ValueError, match=r"\.\.\. '.*bmur.*' \.\.\.: unknown mixer 'bmur'.* position 6000") as error:
        read(pattern)
    assert len(str(error.value)) < 1000
    assert read("rglru*" + "0" * 5000 + "2") == ("rglru", "rglru")
