"""Bits per byte by context and by position, several checkpoints in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridlm.evaluation.lengths.labels import short_names, shown
from hybridlm.evaluation.plots import _pyplot, _save

_MARKERS = "osD^vP*X"


def picture(facts: dict[str, Any], out_png: str | Path) -> Path:
    """Draws the facts of `evaluate_lengths` into a PNG and returns its path.

    Left, by context: what is predicted is the same everywhere; bars are the standard errors of the differences to the
    shortest, and a ring is where a checkpoint stops improving. Right, by position. Raises UserError without matplotlib,
    or where it cannot be written.
    """
    plt = _pyplot()
    found = facts["checkpoints"]
    names = short_names([each["checkpoint"] for each in found])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6 + 0.22 * len(found)), dpi=120, layout="constrained")
    try:
        for at, each in enumerate(found):
            look = {"color": f"C{at % 10}", "marker": _MARKERS[at % len(_MARKERS)], "markersize": 5, "linewidth": 1.4}
            _by_context(left, each, _label(names[at], each), look, facts["same_tokens"])
            _by_position(right, each, look, (at - (len(found) - 1) / 2) * 0.12)
        _finish_context(left, facts)
        _finish_position(right, max((each["by_position"] for each in found), key=len))
        figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
        _save(figure, Path(out_png))
    finally:
        plt.close(figure)
    return Path(out_png)


def _label(name: str, found: dict[str, Any]) -> str:
    missing = next((each["length"] for each in found["by_context"] if each["not_possible"] is not None), None)
    parts = {
        "still improves": found["still_improves"],
        "stops improving at": found["stops_improving_at"],
        "worse from": found["worse_from"],
        "not possible from": missing,
    }
    said = [what if at is True else f"{what} {shown(at)}" for what, at in parts.items() if at]
    return f"{name}: {', '.join(said)}"


def _by_context(axis: Any, found: dict[str, Any], label: str, look: dict[str, Any], in_tokens: bool) -> None:
    rows = [each for each in found["by_context"] if each["not_possible"] is None]
    errors = {each["longer"]: each["standard_error"] for each in found["better_than_shorter"]
              if each["shorter"] == rows[0]["length"]}  # fmt: skip
    across = [each["length"] if in_tokens else each["context_bytes"] for each in rows]
    heights = [each["bits_per_byte"] for each in rows]
    axis.errorbar(
        across, heights, yerr=[errors.get(each["length"], 0.0) for each in rows], capsize=2.5, label=label, **look
    )
    for x, y, each in zip(across, heights, rows, strict=True):
        if each["length"] == found["stops_improving_at"]:
            axis.plot(x, y, marker="o", markersize=13, fillstyle="none", color=look["color"], linestyle="none")


def _by_position(axis: Any, found: dict[str, Any], look: dict[str, Any], aside: float) -> None:
    rows = [(at, each) for at, each in enumerate(found["by_position"]) if each["bits_per_byte"] is not None]
    axis.errorbar(
        [at + aside for at, _ in rows], [each["bits_per_byte"] for _, each in rows],
        yerr=[each["standard_error"] for _, each in rows], capsize=2.5, **look,
    )  # fmt: skip


def _finish_context(axis: Any, facts: dict[str, Any]) -> None:
    axis.set_xscale("log", base=2)
    if facts["same_tokens"]:
        axis.set_xticks(facts["lengths"], [shown(length) for length in facts["lengths"]], minor=False)
        for length in {each["trained_length"] for each in facts["checkpoints"]} - {None}:
            if facts["lengths"][0] <= length <= facts["lengths"][-1]:
                axis.axvline(length, color="grey", linestyle=":", linewidth=1, zorder=0)
        label = "context (tokens; dotted: the length of the training)"
    else:
        low, high = (math.log2(edge) for edge in axis.get_xlim())
        ticks = [2**power for power in range(math.ceil(low), math.floor(high) + 1)]
        ticks = ticks[:: math.ceil(len(ticks) / 8)]
        axis.set_xticks(ticks, [shown(tick) for tick in ticks], minor=False)
        label = "context (bytes of text in front, on average)"
    axis.minorticks_off()
    axis.set_title("By context: the same bytes predicted everywhere", fontsize=10)
    _style(axis, label + "\nbars: error of the difference to the shortest; ring: stops improving")


def _finish_position(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    names = [f"{each['from']:,}–\n{each['to']:,}" for each in rows]
    axis.set_xticks(range(len(rows)), names, minor=False)
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_title("By position in one long window, the state carried", fontsize=10)
    _style(axis, "position (tokens)\nother positions hold other text; bars: standard error")


def _style(axis: Any, label: str) -> None:
    axis.set_xlabel(label, fontsize=9)
    axis.set_ylabel("bits per byte", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
