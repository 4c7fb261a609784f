"""Which text is held out for validation.

By document: a hash of the document decides, so that adding documents moves none that were there. By position: the end
of every document is held out, which a corpus of a few long documents needs.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_BOUNDARIES = (b"\n\n", b"\n", b" ")
_REACH = 4096  # bytes back from the cut in which a boundary is looked for, or a quarter of what is held out


@dataclass(config=ConfigDict(extra="forbid", use_attribute_docstrings=True), kw_only=True)
class ValidationConfig:
    """What is held out."""

    by: Literal["document", "position"] = "document"
    """document: whole documents, chosen by a hash of their text. position: the end of every document."""
    share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Share of the documents, or of each document's bytes; 0: no validation split."""


def split_document(text: str, config: ValidationConfig, seed: int) -> tuple[str, str]:
    """(training text, validation text) of one document; either may be empty."""
    if config.share == 0:
        return text, ""
    if config.by == "document":
        digest = hashlib.sha256(f"{seed}\0".encode() + text.encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < config.share * 2**64
        return ("", text) if held_out else (text, "")
    data = text.encode()
    cut = int(len(data) * (1 - config.share))
    cut = _boundary(data, cut, reach=min(_REACH, (len(data) - cut) // 4))
    return data[:cut].decode(), data[cut:].decode()


def _boundary(data: bytes, cut: int, reach: int) -> int:
    """The nearest place at most `reach` bytes before `cut` behind a paragraph, else a line, else a word.

    Without one, the place between two characters at or before `cut`.
    """
    for boundary in _BOUNDARIES:
        at = data.rfind(boundary, max(0, cut - reach), cut)
        if at > 0:
            return at + len(boundary)
    while 0 < cut < len(data) and data[cut] & 0b1100_0000 == 0b1000_0000:
        cut -= 1
    return cut
