"""A picture of what was measured: bars for the scans, curves for training and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hybridlm.bench.operations import DIRECTIONS, OPERATIONS
from hybridlm.bench.paths import forced_in
from hybridlm.bench.peers import FAMILIES, OURS
from hybridlm.evaluation.plots import _pyplot, _save

_COLOURS = {
    "triton": "tab:green", "cpu": "tab:green", "torch": "tab:blue", "doubling": "tab:orange", "associative": "tab:red",
    "gates + triton": "tab:olive", "gates + cpu": "tab:olive", "gates + torch": "tab:cyan",
    "gates + doubling": "tan", "gates + associative": "rosybrown",
}  # fmt: skip
_OURS = ("tab:green", "tab:olive", "tab:cyan")
_OTHERS = ("black", "tab:orange", "tab:red", "tab:purple")


def draw(entry: dict[str, Any], out: Path) -> Path:
    """Draws a record and returns the path of the PNG, which is whole or not there. Raises UserError without
    matplotlib."""
    plt = _pyplot()
    figure = {"kernels": _kernels, "training": _training, "generation": _generation}[entry["kind"]](plt, entry)
    try:
        _save(figure, out)
    finally:
        plt.close(figure)
    return out


def _kernels(plt: Any, entry: dict[str, Any]) -> Any:
    """The share of the copy bandwidth of every way."""
    rows = entry["rows"]
    names = [name for name in OPERATIONS if any(row["operation"] == name for row in rows)]
    columns = max(1, len(names))
    size = {"figsize": (5 * columns, 7), "dpi": 110}
    figure, axes = plt.subplots(2, columns, **size, layout="constrained", sharey="row", squeeze=False)
    for column, name in enumerate(names):
        for line, direction in enumerate(DIRECTIONS):
            axis = axes[line][column]
            here = [row for row in rows if (row["operation"], row["direction"]) == (name, direction)]
            _bars(axis, here)
            axis.set_title(f"{name}, {direction}", fontsize=10)
            axis.axhline(1, color="grey", linewidth=0.8)
            if column == 0:
                axis.set_ylabel("share of the bandwidth of a copy")
    _legend(figure)
    figure.suptitle(f"Scans: bytes of the floor over the time. {_where(entry)}", fontsize=10)
    return figure


def _bars(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    ways = [way for way in _COLOURS if any(row["way"] == way for row in rows)]
    width = 0.8 / max(1, len(ways))
    for number, way in enumerate(ways):
        mine = {tuple(row["shape"]): row["of_copy"] for row in rows if row["way"] == way}
        places = [place + (number - (len(ways) - 1) / 2) * width for place, shape in enumerate(shapes) if shape in mine]
        axis.bar(places, [mine[s] for s in shapes if s in mine], width, label=way, color=_COLOURS[way])
    words = ["×".join(map(str, shape)) for shape in shapes]
    axis.set_xticks(range(len(shapes)), words, rotation=20, ha="right", fontsize=8)
    axis.grid(alpha=0.3, axis="y")


def _training(plt: Any, entry: dict[str, Any]) -> Any:
    """Tokens per second, and memory, against the length; a row of axes for each precision."""
    precisions = list(dict.fromkeys(row["precision"] for row in entry["rows"]))
    figure, axes = plt.subplots(
        len(precisions), 2, figsize=(11, 4.2 * len(precisions)), dpi=110, layout="constrained", squeeze=False
    )
    for (left, right), precision in zip(axes, precisions, strict=True):
        rows = [row for row in entry["rows"] if row["precision"] == precision]
        _curves(left, rows, "length", lambda row: row["tokens_per_second"])
        ours = [row for row in rows if row["model"] in OURS and "problem" not in row]
        if ours:
            at = sorted({row["length"] for row in ours})
            ceilings = [max(r["ceiling_tokens_per_second"] for r in ours if r["length"] == length) for length in at]
            left.plot(at, ceilings, color="grey", linestyle=":", label="ceiling: matrix products alone")
        _axis(left, "T, tokens of a sequence", f"tokens/s, {precision}")
        _curves(right, rows, "length", _memory)
        _axis(right, "T, tokens of a sequence", "memory of a step, MiB")
    _legend(figure)
    figure.suptitle(f"Training: forward, backward, AdamW. {_millions(entry)}. {_where(entry)}", fontsize=10)
    return figure


def _generation(plt: Any, entry: dict[str, Any]) -> Any:
    """Tokens per second, memory and the cache's size against the position."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), dpi=110, layout="constrained")
    measures: tuple[tuple[str, Callable[[dict[str, Any]], float | None]], ...] = (
        ("tokens/s, bare loop", lambda row: row["tokens_per_second"]),
        ("memory, MiB", _memory),
        ("cache, KiB", lambda row: row["cache_bytes"] / 2**10),
    )
    for axis, (words, value) in zip(axes, measures, strict=True):
        _curves(axis, entry["rows"], "position", value)
        _axis(axis, "position, tokens behind", words)
    _legend(figure)
    figure.suptitle(f"Greedy generation, one text. {_millions(entry)}. {_where(entry)}", fontsize=10)
    return figure


def _legend(figure: Any) -> None:
    """One for all axes, below them."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)


def _memory(row: dict[str, Any]) -> float | None:
    return None if row["memory_bytes"] is None else row["memory_bytes"] / 2**20


def _curves(
    axis: Any, rows: Sequence[dict[str, Any]], along: str, value: Callable[[dict[str, Any]], float | None]
) -> None:
    """A curve for each model; ours are drawn through, others dashed."""
    others = [name for name in FAMILIES if name not in OURS]
    colours = dict(zip([*OURS, *others], [*_OURS, *_OTHERS], strict=True))
    for name in FAMILIES:
        mine = [(row[along], value(row)) for row in rows if row["model"] == name and "problem" not in row]
        mine = [point for point in mine if point[1] is not None]
        if mine:
            style, label = ("-", f"{name} (hybridlm)") if name in OURS else ("--", f"{name} (transformers)")
            axis.plot(*zip(*mine, strict=True), style, marker="o", markersize=4, color=colours[name], label=label)


def _axis(axis: Any, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3, which="both")


def _millions(entry: dict[str, Any]) -> str:
    return f"{entry['settings']['parameters'] / 1e6:.3g} million parameters each"


def _where(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    count = machine["threads"]
    threads = f", {count} thread{'s' * (count > 1)}" if machine["kind"] == "cpu" else ""
    return f"{machine['device']}{threads}, torch {machine['torch']}{forced_in(entry).replace('*', '').replace('`', '')}"
