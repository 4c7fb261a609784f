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

    Left, by context: what is predicted is the same everywhere, and a ring is where a checkpoint stops improving. In the
    middle the same less that of the shortest context, with the standard errors of these differences, which are smaller:
    the text is the same. Right, by position. Raises UserError without matplotlib, or where it cannot be written.
    """
    plt = _pyplot()
    found = facts["checkpoints"]
    names = short_names([each["checkpoint"] for each in found])
    size = (15, 4.6 + 0.22 * len(found))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=size, dpi=120, layout="constrained")
    try:
        for at, each in enumerate(found):
            look = {"color": f"C{at % 10}", "marker": _MARKERS[at % len(_MARKERS)], "markersize": 5, "linewidth": 1.4}
            across = _across(each, facts["same_tokens"])
            _by_context(left, each, across, _label(names[at], each), look)
            if across:
                _gains(middle, each, across, look)
            _by_position(right, each, look, (at - (len(found) - 1) / 2) * min(0.12, 0.6 / len(found)))
        for axis in (left, middle):
            _finish_context(axis, facts)
        left.set_title("The same bytes, by context (± standard error; ring: stops improving)", fontsize=9)
        middle.set_title(f"Better than with {shown(facts['lengths'][0])} (± standard error)", fontsize=9)
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
    said = [what if at is True else f"{what} {shown(at)} tokens" for what, at in parts.items() if at]
    return f"{name}: {', '.join(said)}"


def _across(found: dict[str, Any], in_tokens: bool) -> dict[int, float]:
    """Length -> its place on the axis, of those that were possible."""
    rows = [each for each in found["by_context"] if each["not_possible"] is None]
    return {each["length"]: each["length"] if in_tokens else each["context_bytes"] for each in rows}


def _by_context(axis: Any, found: dict[str, Any], across: dict[int, float], label: str, look: dict[str, Any]) -> None:
    rows = [each for each in found["by_context"] if each["length"] in across]
    heights = {each["length"]: each["bits_per_byte"] for each in rows}
    axis.errorbar(
        list(across.values()), list(heights.values()), yerr=[each["standard_error"] for each in rows], capsize=2.5,
        label=label, **look,
    )  # fmt: skip
    stop = found["stops_improving_at"]
    if stop is not None:
        ring = {"marker": "o", "markersize": 13, "fillstyle": "none", "color": look["color"]}
        axis.plot(across[stop], heights[stop], linestyle="none", **ring)


def _gains(axis: Any, found: dict[str, Any], across: dict[int, float], look: dict[str, Any]) -> None:
    first = min(across)
    rows = [each for each in found["better_than_shorter"] if each["shorter"] == first]
    axis.errorbar(
        [across[first], *(across[each["longer"]] for each in rows)], [0.0, *(each["bits_per_byte"] for each in rows)],
        yerr=[0.0, *(each["standard_error"] for each in rows)], capsize=2.5, **look,
    )  # fmt: skip


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
        label = "context (tokens)"
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
    _style(axis, label)


def _finish_position(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    names = [f"{each['from']:,}–\n{each['to']:,}" for each in rows]
    axis.set_xticks(range(len(rows)), names, minor=False)
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_title("By position in long windows (± standard error)", fontsize=9)
    _style(axis, "position (tokens); other positions hold other text")


def _style(axis: Any, label: str) -> None:
    axis.set_xlabel(label, fontsize=9)
    axis.set_ylabel("bits per byte", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
