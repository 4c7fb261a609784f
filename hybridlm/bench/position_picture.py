"""Time of a token, bytes of state and memory against position, drawn from a record of `position_report`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hybridlm.bench.position_report import CHECKPOINT
from hybridlm.bench.position_table import memory_fields
from hybridlm.evaluation.plots import _pyplot, _save

_COLOURS = ("tab:green", "black")
_DIGITS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
MOST_LABELS, LEAST_LABELS = 6, 4
"""Of positions below an axis; of numbers beside one, if they are round ones."""
Value = Callable[[dict[str, Any]], float | None]


def draw(entry: dict[str, Any], out: Path) -> Path:
    """Draws a record with at least a row and returns the path of the PNG, which is whole or not there. Raises UserError
    without matplotlib."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), dpi=110, layout="constrained")
    try:
        for colour, name in zip(_COLOURS, entry["models"], strict=False):
            rows = [row for row in entry["rows"] if row["model"] == name]
            _draw_model(axes, rows, name, colour)
        limit = entry["settings"]["state_limit_bytes"]
        if any(row.get("estimated_state_bytes", 0) > limit for row in entry["rows"]):
            axes[1].axhline(limit / 2**20, color="tab:red", linewidth=0.8, label="limit of a cache")
        _title_axes(axes, entry)
        figure.legend(*_labels(axes), loc="outside lower center", ncols=6, fontsize=9)
        figure.suptitle(_title(entry), fontsize=10)
        _save(figure, out)
    finally:
        plt.close(figure)
    return out


def _draw_model(axes: Any, rows: list[dict[str, Any]], name: str, colour: str) -> None:
    measured = [row for row in rows if "problem" not in row]
    memory, peak, generate_peak = memory_fields(measured[0] if measured else {})
    line = {"color": colour, "marker": "o", "markersize": 4}
    time, state, held = axes
    _curve(time, measured, lambda row: row["step_seconds"] * 1e3, label=f"{name}: a step", **line)
    _curve(
        time, measured, lambda row: row["generate_seconds"] * 1e3,
        label=f"{name}: a token of generate", linestyle="--", **(line | {"marker": "x"}),
    )  # fmt: skip
    if measured:
        time.fill_between(
            [row["position"] for row in measured], [row["step_seconds"] * 1e3 for row in measured],
            [row["step_seconds_90"] * 1e3 for row in measured], color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
    _curve(state, measured, lambda row: row["state_bytes"] / 2**20, **line)
    _curve(held, measured, lambda row: _mib(row[memory]), **line)
    _curve(held, measured, lambda row: _mib(row[peak]), color=colour, linestyle=":", linewidth=1)
    _curve(held, measured, lambda row: _mib(row[generate_peak]), color=colour, linestyle="--", linewidth=1)
    missing = [row for row in rows if row.get("estimated_state_bytes")]
    if missing:
        _curve(
            state, measured[-1:] + missing, lambda row: _mib(row.get("state_bytes", row.get("estimated_state_bytes"))),
            color=colour, linestyle=":", marker="o", markersize=5, markerfacecolor="none",
            label=f"{name}: estimated, not run",
        )  # fmt: skip


def _curve(axis: Any, rows: list[dict[str, Any]], value: Value, **look: Any) -> None:
    points = [(row["position"], value(row)) for row in rows]
    points = [point for point in points if point[1] is not None]
    if points:
        axis.plot(*zip(*points, strict=True), **look)


def _title_axes(axes: Any, entry: dict[str, Any]) -> None:
    axes[0].set_title("shaded: up to the 90th percentile of a step", fontsize=9)
    own = any("device_bytes" in row for row in entry["rows"])
    memory = "memory of the GPU" if own else "resident memory of the process"
    axes[2].set_title("dotted: peak in the steps; dashed: peak in generate", fontsize=9)
    marks = spread_out({row["position"] for row in entry["rows"]})
    names = ("milliseconds a token", "state: tensors of the cache, MiB", f"{memory}, MiB")
    for axis, words in zip(axes, names, strict=True):
        axis.set(xlabel="position, tokens in the cache", ylabel=words, xscale="log", yscale="log")
        low, high = axis.get_ylim()
        if high < 4 * low:  # hardly anything changes: it should look so
            axis.set_ylim(low / 2, high * 2)
        axis.minorticks_off()
        for name, ticks in (("x", marks), ("y", round_between(*axis.get_ylim()))):
            axis.set(**{f"{name}ticks": ticks, f"{name}ticklabels": [f"{tick:,.10g}" for tick in ticks]})
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)


def _labels(axes: Any) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)


def _title(entry: dict[str, Any]) -> str:
    machine, facts = entry["machine"], entry["models"][CHECKPOINT]
    names = ", ".join(
        f"{name} {each['pattern'] or each['class']} ({each['parameters'] / 1e6:.3g} M)"
        for name, each in entry["models"].items()
    )
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine["kind"] == "cpu" else ""
    where = f"{facts.get('dtype', '')} on {machine['device']}{threads}, torch {machine['torch']}"
    return f"Generation against position, one text. {names}. {where}"


def spread_out(positions: Collection[int]) -> list[int]:
    """Those whose labels do not run into each other; powers of ten before others."""
    found: list[int] = []
    room = math.log(max(positions) / min(positions)) / MOST_LABELS
    for position in sorted(positions, key=lambda each: (not math.log10(each).is_integer(), each)):
        if all(abs(math.log(position / other)) >= room for other in found):
            found.append(position)
    return sorted(found)


def round_between(low: float, high: float) -> list[float]:
    """Round numbers, as few as there are in a scale of tens, or in the finest one."""
    found: list[float] = []
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for digits in _DIGITS:
        found = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) >= LEAST_LABELS:
            break
    return found


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20
