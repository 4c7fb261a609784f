"""Lengths as they are written."""

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.lengths.labels import read_lengths, short_names, shown


def test_lengths_are_read_and_shown():
    assert read_lengths("512,2k, 128K,1m") == [512, 2048, 131_072, 1_048_576]
    assert [shown(length) for length in (512, 1000, 1024, 131_072, 1_048_576)] == ["512", "1,000", "1k", "128k", "1m"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("512,", "'' is no number of tokens"),
        ("512,2kb", "'2kb' is no number of tokens"),
        ("0.5k,1k", "'0.5k' is no number of tokens"),
        ("-512,1k", "-512 is too short; must be at least 2"),
        ("0,512", "0 is too short; must be at least 2"),
        ("1,512", "1 is too short"),
        ("512,512", "512 comes after 512"),
        ("2k,512", "512 comes after 2,048"),
        ("512", "at least two"),
    ],
)
def test_what_is_no_list_of_lengths_is_refused(text, says):
    with pytest.raises(UserError, match=says):
        read_lengths(text)


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["runs/a/final", "owner/gpt2"]) == ["final", "gpt2"]
    assert short_names(["runs/a/final", "runs/b/final"]) == ["a/final", "b/final"]
    assert short_names(["final", "a/final"]) == ["final", "a/final"]
