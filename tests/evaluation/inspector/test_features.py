"""Features of a text, character by character and token by token."""

import numpy as np
import pytest

from hybridlm.evaluation.inspector.features import (
    inside_quotation,
    paragraph_starts,
    sentence_starts,
    token_features,
)
from hybridlm.evaluation.inspector.spans import TokenSpans


def words(text, starts):
    """The four characters at each place."""
    return [text[place : place + 4] for place in starts]


def test_paragraphs_and_sentences():
    text = '\n  One. Two!  "Three?" said Mr. Four. five (six.) Seven…\nEight, Dr.\n \t\n"Nine." Ten\n\n\nEleven.\n'
    assert words(text, paragraph_starts(text)) == ["One.", '"Nin', "Elev"]
    wanted = ["One.", "Two!", '"Thr', "Seve", "Eigh", '"Nin', "Ten\n", "Elev"]
    assert words(text, sentence_starts(text)) == wanted


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('a "bc" d "e¶¶f" "g', "__###____####_##__"),  # the mark behind f opens, the next one closes
        ("a “b «c» d” ‘e’ it's „f“ «g» ”h", "__########___________##__##____"),
        ("“a¶b” c", "####___"),
    ],
)
def test_inside_quotation_marks(text, inside):
    found = inside_quotation(text.replace("¶", "\n"))
    assert "".join("#" if each else "_" for each in found) == inside


def test_values_at_tokens():
    pieces = ["", "He", ' "', "Oh", '!"', " A", ".", "\n\nB", "c", "", ". D"]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    values = token_features(TokenSpans(list(range(11)), "".join(pieces), ends))
    assert values["in quotation"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert values["paragraph start"].tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert values["sentence start"].tolist() == [1, 0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert (2 ** values["position in paragraph"] - 1).round().tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert (2 ** values["position in sentence"] - 1).round().tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0]
    assert values["position in document"].tolist() == list(range(10))
