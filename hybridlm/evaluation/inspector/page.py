"""The inspector as one HTML file, which needs no network. Everything that comes from a file is escaped, and a security
policy lets no other script run than the one that the page brings.

The bits go into the page as they are packed, in base64; inspector.js and picture.js read them there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from hybridlm.evaluation.inspector.alignment import Alignment
from hybridlm.evaluation.inspector.figures import ALWAYS, UnitFigures
from hybridlm.evaluation.inspector.recording import Recording
from hybridlm.evaluation.inspector.spans import TokenSpans
from hybridlm.evaluation.markup import shown


def render_page(
    title: str,
    facts: list[str],
    recording: Recording,
    spans: TokenSpans,
    figures: list[UnitFigures],
    alignments: list[Alignment],
) -> str:
    """The page. facts: lines of plain text below the title."""
    style, script = _asset("inspector.css"), _asset("inspector.js") + _asset("picture.js")
    return Template(_asset("inspector.html")).substitute(
        title=shown(title),
        facts="\n".join(f'<p class="fine">{shown(fact)}</p>' for fact in [*facts, _counts(figures)]),
        features=_features(recording, alignments),
        data=_json(_data(recording, spans, figures, alignments)),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _counts(figures: list[UnitFigures]) -> str:
    dead, always = (sum(each.kind == kind for each in figures) for kind in ("dead", "always"))
    return (
        f"{len(figures):,} memory units. {dead:,} are dead: they never write. {always:,} are always-writing: at "
        f"{ALWAYS:.0%} of the tokens or more."
    )


def _features(recording: Recording, alignments: list[Alignment]) -> str:
    names = recording.names
    rows = []
    for each in alignments:
        best = ", ".join(f'<a href="#unit={names[unit]}">{names[unit]}</a> {each.r[unit]:+.3f}' for unit in each.best)
        luck = ["–", "–"] if each.chance is None or each.p is None else [f"{each.chance:.3f}", f"{each.p:.3f}"]
        cells = [shown(each.feature.name), shown(each.feature.series), best, *luck]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{cell}</th>"
        for cell in ("feature", "of a unit", "best units, and r", "chance gives |r|", "p of the best")
    )
    note = (
        "r: correlation of the sign of the state, or of the write bit, with the feature; of two-valued ones the phi "
        "coefficient. Chance: with the feature shifted circularly, the best unit's |r| stays below this in 95 % of the "
        "shifts; p: the share of shifts in which some unit reaches the |r| of the first one named. The position in the "
        "document has neither: in a single text any unit that changes a few times goes along with it. Features that "
        "are constant in the text are left out."
    )
    return f'<p class="fine">{note}</p>\n<table id="features"><tr>{head}</tr>\n' + "\n".join(rows) + "\n</table>"


def _data(
    recording: Recording, spans: TokenSpans, figures: list[UnitFigures], alignments: list[Alignment]
) -> dict[str, Any]:
    return {
        "cells": [
            {"layer": cell.layer, "kind": cell.kind, "first": cell.first, "width": cell.width}
            for cell in recording.cells
        ],
        "pieces": [spans.piece(token) for token in range(recording.tokens)],
        "positive": _bits(recording.positive),
        "zero": None if recording.zero is None else _bits(recording.zero),
        "writes": _bits(recording.writes),
        "figures": [
            {
                "writes": round(each.write_share, 5),
                "plus": round(each.plus_share, 5),
                "changes": each.changes,
                "median": each.median_hold,
                "longest": each.longest,
                "holds": each.holds,
                "kind": each.kind,
            }
            for each in figures
        ],
        "features": [{"name": each.feature.name, "r": [round(r, 4) for r in each.r.tolist()]} for each in alignments],
    }


def _bits(plane: np.ndarray) -> str:
    return base64.b64encode(plane.tobytes()).decode("ascii")


def _json(data: dict[str, Any]) -> str:
    """JSON that no HTML parser takes for the end of its script element, nor for the beginning of a comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return resources.files("hybridlm.evaluation.inspector").joinpath(name).read_text(encoding="utf-8")
