"""The README of a checkpoint: how to load it, what it is, whose the code is.

`hybridlm export` writes a small one, `hybridlm card` (model_card) one with all that is known. Both are sealed
(model/card_hybridlm.py): whoever changes a word of one makes it their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from hybridlm.errors import UserError
from hybridlm.model.card_hybridlm import (
    TASKS,
    card,
    card_top,
    loading_snippet,
    open_seal,
    sealed,
    sealed_by,
    title_of,
)

__all__ = ["TASKS", "card", "card_top", "loading_snippet", "open_seal", "sealed", "sealed_by", "title_of"]

PICTURE = "README_curves.png"
"""The picture of a full card, beside it."""
BENCHMARKS = ".eval_results/hybridlm.yaml"
"""Results that the Hub shows on the pages of benchmarks, beside a full card."""
WRITTEN = "# Written by `hybridlm card`."
"""First line of BENCHMARKS."""

_MARK = "<!-- Of weights with the hash {} -->"
_MARKED = re.compile(_MARK.format("([0-9a-f]{64})"))

_NAME = "<!-- Named {} -->"
_NAMED = re.compile(_NAME.format("(.+)"))

OPENING, CLOSING = "<!-- title, and how to load it -->", "<!-- the rest -->"
"""Around the part of a full card that an export writes anew."""


def is_own_card(text: str) -> bool:
    """Whether a README was written, or changed, by somebody."""
    return sealed_by(text) is None


def has_own_card(folder: Path) -> bool:
    """Whether that of a checkpoint was."""
    return (folder / "README.md").is_file() and is_own_card(_text(folder))


def is_full_card(text: str) -> bool:
    """Whether it is as `hybridlm card` wrote it."""
    return sealed_by(text) == "card"


def full_card(folder: Path) -> str | None:
    """The text of that of a checkpoint; None where there is none."""
    text = _text(folder) if (folder / "README.md").is_file() else ""
    return text if is_full_card(text) else None


def mark(weights: str | None) -> str:
    """What says in a full card which weights it is of, a `weights_digest`; nothing where there are none."""
    return "" if weights is None else _MARK.format(weights)


def marked(text: str) -> str | None:
    """The `weights_digest` of the weights that a full card is of; None where it does not say."""
    found = _MARKED.search(text)
    return found[1] if found is not None else None


def mark_name(name: str | None) -> str:
    """What keeps in a full card the name that it was made with; nothing where there was none."""
    return "" if name is None else _NAME.format(name)


def named(text: str) -> str | None:
    """The name that a full card was made with."""
    found = _NAMED.search(text.partition(OPENING)[0])
    return found[1] if found is not None else None


def moved(text: str, top: str, title: str, weights: str | None) -> str:
    """A full card for another place. top: its new title, and how to load it; weights: the `weights_digest` of the same
    weights there. Raises UserError where its metadata cannot be read, as `hybridlm card` never wrote them."""
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, AttributeError, YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"README.md: its metadata cannot be read ({reason}). Remove it, or make it anew.") from None
    before, _, rest = card.text.partition(OPENING)
    _, _, behind = rest.partition(CLOSING)
    before = _MARKED.sub(mark(weights), before)
    card.text = f"{before}{OPENING}\n\n{top.strip()}\n\n{CLOSING}{behind}"
    data: Any = card.data
    if data.eval_results:
        data.model_name = title
    return sealed(str(card))


def _text(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8", errors="replace")
