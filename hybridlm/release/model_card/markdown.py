"""Markdown that what comes from files cannot break: names and paths stand in code, cells keep to their column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]+")


def code(text: object) -> str:
    """Inline code, on one line."""
    shown = _UNSEEN.sub(" ", str(text)).strip() or " "
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (_longest(shown) + 1)
    return f"{fence} {shown} {fence}"


def block(lines: Iterable[str], language: str = "") -> str:
    """A fenced block."""
    text = "\n".join(lines).strip("\n")
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown. header None: the first column names what stands beside it. "" without rows."""
    body = [list(row) for row in rows]
    if not body:
        return ""
    head = [""] * len(body[0]) if header is None else list(header)
    return "\n".join(["| " + " | ".join(map(_cell, row)) + " |" for row in (head, ["---"] * len(head), *body)])


def _longest(text: str) -> int:
    """Backticks in the longest run of them."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
