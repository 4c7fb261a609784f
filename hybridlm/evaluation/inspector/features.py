"""Features of a text at every token, read off its characters: what a unit's behaviour is laid beside.

A value is that after the token's last character, since that is what a state behind the token can know. Positions are
log2(1 + tokens since the beginning), since a memory can tell the first tokens from later ones, but hardly the
hundredth from the hundred-and-first; the position in the document is the plain number of the token.

    paragraph    begins at the first letter of the text and behind each blank line
    sentence     begins with a paragraph, and behind . ! ? or ..., closing quotation marks and brackets, and white
                 space, unless a small letter follows or the full stop belongs to a title such as Mr
    quotation    from an opening mark to the closing one of its kind, or to the end of the paragraph. Straight marks
                 open and close in turn; single marks are left out, since an apostrophe looks the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybridlm.evaluation.inspector.spans import TokenSpans

_CLOSING = {'"': '"', "“": "”", "„": "“”", "«": "»"}
_PARAGRAPH = re.compile(r"(?:\A|\n[^\S\n]*\n)\s*(?=\S)")
_SENTENCE_END = re.compile(r"([.!?…]+)[\"”“’»')\]]*\s+(?=\S)")
_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Capt", "Col", "Gen", "Rev", "Hon")


@dataclass(frozen=True)
class Feature:
    """series: what of a unit it is laid beside, "state" (its sign) or "writes". compute: (characters, ends of the
    tokens) to one number a token. recurs: whether it comes and goes within a text, so that it could as well stand
    elsewhere in it."""

    name: str
    series: str
    compute: Callable[[str, np.ndarray], np.ndarray]
    recurs: bool = True


def token_features(spans: TokenSpans) -> dict[str, np.ndarray]:
    """Every feature of FEATURES at every token, fp64; the start symbol, which stands in front of the text, is left
    out: one value less than there are ids."""
    ends = np.asarray(spans.ends[1:])
    return {feature.name: feature.compute(spans.text, ends).astype(np.float64) for feature in FEATURES}


def paragraph_starts(text: str) -> list[int]:
    """Where paragraphs begin, as places of characters."""
    return [match.end() for match in _PARAGRAPH.finditer(text)]


def sentence_starts(text: str) -> list[int]:
    """Where sentences begin, those that begin a paragraph included."""
    found = set(paragraph_starts(text))
    for match in _SENTENCE_END.finditer(text):
        if not text[match.end()].islower() and not (match[1] == "." and _ends_with_title(text, match.start())):
            found.add(match.end())
    return sorted(found)


def _ends_with_title(text: str, end: int) -> bool:
    word = text[max(0, end - 8) : end].split()[-1:]
    return bool(word) and word[0].lstrip("(\"“'‘") in _TITLES


def inside_quotation(text: str) -> np.ndarray:
    """(characters,) bool: whether a quotation is open behind each character."""
    inside, closing = np.zeros(len(text), dtype=bool), ""
    starts = set(paragraph_starts(text))
    for place, character in enumerate(text):
        if place in starts:
            closing = ""
        if closing:
            closing = "" if character in closing else closing
        else:
            closing = _CLOSING.get(character, "")
        inside[place] = bool(closing)
    return inside


def _quotation(text: str, ends: np.ndarray) -> np.ndarray:
    inside = np.concatenate([[False], inside_quotation(text)])
    return inside[ends]


def _begins(starts: list[int], ends: np.ndarray) -> np.ndarray:
    """Whether each token has a place of `starts` among its characters."""
    begins = np.zeros(len(ends), dtype=bool)
    at = np.searchsorted(ends, np.asarray(starts, dtype=int), side="right")  # the first token that ends behind it
    begins[at[at < len(ends)]] = True
    return begins


def _since(begins: np.ndarray) -> np.ndarray:
    """log2(1 + tokens since the last beginning, or since the first token)."""
    number = np.arange(len(begins))
    last = np.maximum.accumulate(np.where(begins, number, 0))
    return np.log2(1 + number - last)


FEATURES = (
    Feature("in quotation", "state", _quotation),
    Feature("paragraph start", "writes", lambda text, ends: _begins(paragraph_starts(text), ends)),
    Feature("position in paragraph", "state", lambda text, ends: _since(_begins(paragraph_starts(text), ends))),
    Feature("sentence start", "writes", lambda text, ends: _begins(sentence_starts(text), ends)),
    Feature("position in sentence", "state", lambda text, ends: _since(_begins(sentence_starts(text), ends))),
    Feature("position in document", "state", lambda text, ends: np.arange(len(ends)), recurs=False),
)
"""What is measured. A new feature is a function and a line here."""
