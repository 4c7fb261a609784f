"""The text task: bytes decoded, and the planted sentence searched with a regular expression."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from hybridlm.data.austen import austen_paths
from hybridlm.evaluation.memory import text
from hybridlm.evaluation.memory.task import IGNORED, Batch
from hybridlm.evaluation.memory.text import Text

NORTHANGER, PERSUASION = (path.read_text("ascii") for path in austen_paths())
PLANT = re.compile(r" The chosen (?:name is (Anne|Henry)|colour is (red|blue)|place is (Bath|Lyme))\. ")
QUESTION = re.compile(r" The chosen (?:name|colour|place) is ")
TESTS = [(quick, test.name) for quick in (True, False) for test in Text(quick).tests()]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(batch: Batch) -> list[tuple[str, list[int]]]:
    return [
        (bytes(row).decode("ascii"), targets)
        for row, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    ]


def planted(row: str) -> tuple[re.Match[str], str]:
    """The one planted sentence of a row, and its word."""
    (found,) = PLANT.finditer(row)
    return found, next(word for word in found.groups() if word)


def questions(row: str) -> list[re.Match[str]]:
    return list(QUESTION.finditer(row, planted(row)[0].end()))


def novel_of(row: str) -> str:
    """What is left of a row without what was planted."""
    found = planted(row)[0]
    return row[: found.start()] + QUESTION.sub("", row[found.end() :])


def named(quick: bool, name: str) -> text.Test:
    return next(test for test in Text(quick).tests() if test.name == name)


@pytest.mark.parametrize("quick", [True, False])
def test_training_asks_behind_every_question_for_the_planted_word(quick: bool) -> None:
    task = Text(quick)
    for row, targets in rows_of(task.batch(200, drawn(0))):
        found, word = planted(row)
        assert len(row) == (256 if quick else 512)
        assert 0 <= found.start() < 64
        assert novel_of(row) in PERSUASION
        expected = [IGNORED] * len(row)
        end, kind = found.end(), found.group().split()[2]
        for question in questions(row):
            assert question.start() - end < 32
            assert question.group().split()[2] == kind
            expected[question.end() - 1] = ord(word[0])
            end = question.end()
        assert targets == expected
        assert len(row) - end < 32 + 22, "room for a further question"


@pytest.mark.parametrize(("quick", "name"), TESTS)
def test_a_test_asks_once_at_the_distance_that_its_name_says(quick: bool, name: str) -> None:
    test = named(quick, name)
    distance = {"1x": 128 if quick else 384, "1k": 1_000, "10k": 10_000, "100k": 100_000}[name]
    for row, targets in rows_of(test.make(4, drawn(1))):
        found, word = planted(row)
        (question,) = questions(row)
        assert len(row) == test.length
        assert question.start() - found.end() == distance
        assert question.group().split() == found.group().split()[:4]
        assert [(i, target) for i, target in enumerate(targets) if target != IGNORED] == [
            (question.end() - 1, ord(word[0]))
        ]
        assert novel_of(row) in NORTHANGER


def test_the_quick_form_stops_at_ten_thousand() -> None:
    assert [test.name for test in Text(quick=True).tests()] == ["1x", "1k", "10k"]
    assert [test.name for test in Text().tests()] == ["1x", "1k", "10k", "100k"]
    assert all(test.length * test.rows < 2e6 for test in Text().tests())


def test_the_words_and_the_places_of_the_sentence_are_drawn_evenly() -> None:
    rows = [row for row, _ in rows_of(named(True, "1x").make(3000, drawn(2)))]
    words = Counter(planted(row)[1] for row in rows)
    assert set(words) == {"Anne", "Henry", "red", "blue", "Bath", "Lyme"}
    assert all(abs(count - 500) < 80 for count in words.values())
    starts = Counter(planted(row)[0].start() for row in rows)
    assert set(starts) == set(range(64))


def test_the_words_of_a_kind_differ_in_the_byte_that_is_asked() -> None:
    assert all(one[0] != other[0] for one, other in text.CHOICES.values())


def test_the_novels_do_not_hold_the_question_and_are_different() -> None:
    assert not QUESTION.search(PERSUASION)
    assert not QUESTION.search(NORTHANGER)
    assert not any(PERSUASION[at : at + 200] in NORTHANGER for at in range(1000, 400_000, 1000))


def test_nothing_but_the_planted_word_tells_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    test = named(True, "1k")
    rows = [row for row, _ in rows_of(test.make(40, drawn(3)))]
    monkeypatch.setattr(text, "CHOICES", {kind: words[::-1] for kind, words in text.CHOICES.items()})
    others = [row for row, _ in rows_of(test.make(40, drawn(3)))]
    for row, other in zip(rows, others, strict=True):
        (found, word), (swapped, another) = planted(row), planted(other)
        assert word != another
        before, after = row[: found.start()], row[found.end() :]
        assert other[: swapped.start()] == before
        shorter = min(len(after), len(other) - swapped.end())
        assert other[swapped.end() :][:shorter] == after[:shorter]


def test_a_seed_gives_one_batch() -> None:
    for make in (Text(quick=True).batch, named(True, "1k").make):
        one, again, other = (make(8, drawn(seed)) for seed in (4, 4, 5))
        assert torch.equal(one.inputs, again.inputs)
        assert torch.equal(one.targets, again.targets)
        assert not torch.equal(one.inputs, other.inputs)
