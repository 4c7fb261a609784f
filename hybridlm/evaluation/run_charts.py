"""The pictures of a run report: one a quantity, with every run in it, as PNG bytes.

matplotlib is the extra `plot` (see plots.py). A picture of something that no run has is left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridlm.evaluation.plots import _pyplot
from hybridlm.evaluation.run_curves import raw, real_rate, smoothing_window, thinned, trailing_mean
from hybridlm.evaluation.run_record import RunRecord, number

_SIZE = (7.2, 3.4)
_MOST_NAMES = 10
"""Lines that a legend names; of more layers, every few."""
_COLOURS = (
    "#1f77b4",
    "#d95f02",
    "#2a9d4a",
    "#c2255c",
    "#7b52ab",
    "#8c564b",
    "#17a2b8",
    "#b8860b",
    "#555555",
    "#e377c2",
)


@dataclass
class Chart:
    """A picture with its words."""

    title: str
    caption: str
    png: bytes


@dataclass
class _Line:
    """A run as it is drawn."""

    run: RunRecord
    label: str
    colour: Any
    x: np.ndarray
    """(steps,) what a training row is drawn over."""
    x_validation: np.ndarray

    def smooth(self, name: str) -> np.ndarray:
        """(steps,) the running mean of a column."""
        return trailing_mean(self.run.column(name), smoothing_window(len(self.x)))


def draw(runs: list[RunRecord]) -> list[Chart]:
    """All pictures. Raises NoMatplotlibError without matplotlib."""
    plt = _pyplot()
    lines, over = _lines(runs, plt)
    quantities: list[tuple[str, str, Callable[[Any, list[_Line]], bool]]] = [
        ("Training loss", "nats per token; faint: each step, strong: running mean", _loss),
        ("Validation", "bits per byte at epsilon = 0; dashed: averaged weights", _validation),
        (
            "Throughput",
            "tokens per second; strong: real time, all included; faint: in steps alone",
            _throughput,
        ),
        ("Learning rate", "", _column("lr", "learning rate")),
        ("Gradient norm", "before clipping; faint: each step, strong: running mean", _gradient),
        ("Epsilon", "annealing of bmru layers: 1 is cumulative, 0 bistable", _column("epsilon", "epsilon")),
        ("Exploration", "scale of the noise on the transitions of nfsm layers", _column("exploration", "scale")),
        ("Z-loss", "running mean", _column("z_loss", "z-loss", smooth=True)),
        ("Model FLOPs utilisation", "share of the device's peak; running mean", _column("mfu", "share", smooth=True)),
    ]
    charts = []
    for title, caption, plot in quantities:
        with _Figure(plt) as figure:
            axis = figure.subplots()
            if plot(axis, lines):
                _finish(axis, over, len(lines))
                charts.append(Chart(title, caption, _png(figure)))
    for title, caption, name, log in _MEMORY:
        charts += _memory(plt, lines, over, title, caption, name, log)
    return charts


def loss_and_validation(run: RunRecord) -> bytes | None:
    """The first two of these pictures of one run side by side, as PNG; one alone where the run has no other, None
    where it has neither. Raises NoMatplotlibError without matplotlib."""
    plt = _pyplot()
    lines, over = _lines([run], plt)
    with _Figure(plt) as figure:
        figure.set_size_inches(2 * _SIZE[0], _SIZE[1])
        left, right = figure.subplots(1, 2)
        shown = False
        for axis, plot, title in ((left, _loss, "training"), (right, _validation, "validation")):
            if plot(axis, lines):
                axis.set_title(title, fontsize=10)
                _finish(axis, over, 1)
                shown = True
            else:
                figure.delaxes(axis)
        return _png(figure) if shown else None


def colours(count: int, plt: Any) -> list[Any]:
    """A colour for each of `count` runs or layers, told apart on white."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return list(plt.get_cmap("turbo")(np.linspace(0.05, 0.95, count)))


def plain_label(text: str) -> str:
    """A name as matplotlib can draw it: no formula, no character that its font lacks, not hidden from the legend."""
    shown = "".join(char if char.isprintable() and ord(char) < 0x250 else "?" for char in text)
    shown = shown if len(shown) <= 40 else f"…{shown[-39:]}"
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")


def _lines(runs: list[RunRecord], plt: Any) -> tuple[list[_Line], str]:
    """The runs, over steps; over tokens where their steps are of different sizes and all of them count tokens."""
    sizes = [run.column("tokens") / run.column("step") for run in runs if run.training]
    means = [float(np.nanmean(size)) if np.isfinite(size).any() else float("nan") for size in sizes]
    over_tokens = len(means) > 1 and bool(np.isfinite(means).all()) and not np.allclose(means, means[0], rtol=1e-3)
    lines = []
    for run, colour in zip(runs, colours(len(runs), plt), strict=True):
        x, at = run.column("step"), run.column("step", run.validation)
        if over_tokens and run.training:
            tokens = run.column("tokens")
            x, at = tokens, at * float(np.nanmean(tokens / x))
        lines.append(_Line(run, plain_label(run.name), colour, x, at))
    return lines, "tokens read" if over_tokens else "step"


def _loss(axis: Any, lines: list[_Line]) -> bool:
    every, drawn = [], False
    for line in lines:
        loss = line.run.column("loss")
        if not np.isfinite(loss).any():
            continue
        drawn = True
        every.append(loss[np.isfinite(loss)])
        all_steps, mean = raw(line.x, loss), thinned(line.x, line.smooth("loss"))
        axis.plot(all_steps.x, all_steps.y, color=line.colour, alpha=0.22, linewidth=0.7)
        axis.plot(mean.x, mean.y, color=line.colour, linewidth=1.8, label=line.label)
    if drawn:
        axis.set_ylabel("loss (nats per token)")
        _leave_out_spikes(axis, np.concatenate(every))
    return drawn


def _leave_out_spikes(axis: Any, values: np.ndarray) -> None:
    """One step of a hundred times the loss would make a flat line of all others: it is cut off at the top."""
    low, middle, high = np.percentile(values, (0, 50, 99.5))
    top = high + 0.15 * (high - low)
    if values.max() > top + 3 * (top - low) and middle < top:
        axis.set_ylim(low - 0.05 * (top - low), top)
        axis.annotate(
            f"cut off: up to {values.max():.4g}",
            (0.5, 0.98),
            xycoords="axes fraction",
            va="top",
            ha="center",
            fontsize=8,
            color="#666",
        )


def _validation(axis: Any, lines: list[_Line]) -> bool:
    drawn = False
    for line in lines:
        for name, style, suffix in (("bits_per_byte", "-", ""), ("bits_per_byte_ema", "--", ", averaged weights")):
            values = line.run.column(name, line.run.validation)
            there = np.isfinite(values)
            if there.any():
                drawn = True
                bare = suffix or there.sum() > 60
                axis.plot(
                    line.x_validation[there], values[there], style, color=line.colour, linewidth=1.6,
                    marker=None if bare else "o", markersize=3.5, label=line.label + suffix,
                )  # fmt: skip
    axis.set_ylabel("bits per byte")
    if drawn:
        _log_scale(axis)  # from an untrained model to a trained one is a long way, and the end is what counts
    return drawn


def _throughput(axis: Any, lines: list[_Line]) -> bool:
    drawn, top = False, 0.0
    for line in lines:
        inside = thinned(line.x, line.smooth("tokens_per_second"))
        window = _window_of_pauses(line.run)
        real = thinned(line.x, real_rate(line.run.column("tokens"), line.run.column("seconds"), window))
        for curve, style in ((inside, {"alpha": 0.45, "linewidth": 1.0}), (real, {"linewidth": 1.8})):
            if np.isfinite(curve.y).any():
                label = line.label if curve is real or not np.isfinite(real.y).any() else None
                axis.plot(curve.x, curve.y, color=line.colour, label=label, **style)
                drawn, top = True, max(top, float(np.nanmax(curve.y)))
    axis.set_ylabel("tokens per second")
    if drawn and top > 0:
        axis.set_ylim(0, 1.08 * top)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if top >= 10 else f"{value:.2g}")
    return drawn


def _window_of_pauses(run: RunRecord) -> int:
    """Steps for the rate over real time: whole rounds from validation to validation, so that every window holds as many
    pauses and the curve does not jump with them."""
    steps, window = len(run.training), smoothing_window(len(run.training))
    apart = np.diff(run.column("step", run.validation))
    between = int(np.median(apart)) if len(apart) else 0
    return -(-window // between) * between if 0 < between <= steps // 2 else window


def _gradient(axis: Any, lines: list[_Line]) -> bool:
    drawn = False
    for line in lines:
        norm = line.run.column("grad_norm")
        norm[~(norm > 0)] = np.nan  # for the logarithm
        if np.isfinite(norm).any():
            drawn = True
            all_steps = raw(line.x, norm)
            mean = thinned(line.x, trailing_mean(norm, smoothing_window(len(norm))))
            axis.plot(all_steps.x, all_steps.y, color=line.colour, alpha=0.22, linewidth=0.7)
            axis.plot(mean.x, mean.y, color=line.colour, linewidth=1.8, label=line.label)
    axis.set_ylabel("gradient norm")
    if drawn:
        _log_scale(axis)
    return drawn


def _column(name: str, label: str, smooth: bool = False) -> Callable[[Any, list[_Line]], bool]:
    def plot(axis: Any, lines: list[_Line]) -> bool:
        drawn = False
        for line in lines:
            values = line.smooth(name) if smooth else line.run.column(name)
            if np.isfinite(values).any():
                drawn = True
                curve = thinned(line.x, values)
                axis.plot(curve.x, curve.y, color=line.colour, linewidth=1.6, label=line.label)
        axis.set_ylabel(label)
        return drawn

    return plot


_MEMORY = (
    ("Memory units: writes", "share of units that write at a token, by layer", "write_share", False),
    ("Memory units: hold", "mean tokens for which a state is held, by layer", "mean_hold", True),
    ("Memory units: dead", "share of units that never write, by layer", "dead_units", False),
    (
        "Memory units: always writing",
        "share of units that write all the time, by layer",
        "always_writing_units",
        False,
    ),
)


def memory_series(run: RunRecord, name: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (indices of the training rows, values) of one statistic of the memory units; counts of units as shares
    of the layer's units."""
    found: dict[int, list[tuple[int, float]]] = {}
    for index, row in enumerate(run.training):
        layers = row.get("memory")
        for layer in layers if isinstance(layers, list) else ():
            if isinstance(layer, dict) and isinstance(layer.get("layer"), int):
                value = _statistic(layer, name)
                if np.isfinite(value):
                    found.setdefault(layer["layer"], []).append((index, value))
    return {
        layer: (np.array([index for index, _ in pairs]), np.array([value for _, value in pairs]))
        for layer, pairs in sorted(found.items())
    }


def _statistic(layer: dict[str, Any], name: str) -> float:
    value = number(layer.get(name))
    if name.endswith("_units"):
        units = number(layer.get("units"))
        return value / units if units > 0 else float("nan")
    return value


def _memory(plt: Any, lines: list[_Line], over: str, title: str, caption: str, name: str, log: bool) -> list[Chart]:
    """A picture a run, as a run has a line a layer."""
    charts = []
    for line in lines:
        layers = memory_series(line.run, name)
        if not layers:
            continue
        with _Figure(plt) as figure:
            axis = figure.subplots()
            every = -(-len(layers) // _MOST_NAMES)
            shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(layers)))
            for place, ((layer, (rows, values)), shade) in enumerate(zip(layers.items(), shades, strict=True)):
                curve = thinned(line.x[rows], values)
                label = f"layer {layer}" if place % every == 0 else None
                axis.plot(curve.x, curve.y, color=shade, linewidth=1.5, label=label)
            if log:
                _log_scale(axis)
            else:
                axis.set_ylim(*_share_limits(axis))
            axis.set_ylabel("tokens" if log else "share of units")
            _finish(axis, over, len(layers))
            charts.append(Chart(title if len(lines) == 1 else f"{title} — {line.run.name}", caption, _png(figure)))
    return charts


def _share_limits(axis: Any) -> tuple[float, float]:
    top = max(float(np.nanmax(line.get_ydata())) for line in axis.lines)
    return (-0.02, 1.02) if top > 0.5 else (-0.02 * max(top, 0.05), 1.1 * max(top, 0.05))


def _log_scale(axis: Any) -> None:
    """A logarithmic axis with plain numbers on it, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    wide = high / low
    fine = [1 + part / 4 for part in range(36)] if wide < 2.5 else [float(digit) for digit in range(1, 10)]
    subs = [1.0] if wide > 1e3 else [1.0, 2.0, 5.0] if wide > 10 else fine
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value >= 1e-3 else f"{value:.0e}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _finish(axis: Any, over: str, lines: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_xlabel(over)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if max((abs(limit) for limit in axis.get_xlim()), default=0) >= 1e6:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if lines > 1:
        axis.legend(fontsize=8, framealpha=0.85, ncols=1 if lines <= 6 else 2)


class _Figure:
    """`with _Figure(plt) as figure`: an empty one, closed in any case."""

    def __init__(self, plt: Any):
        self.plt = plt

    def __enter__(self) -> Any:
        self.figure = self.plt.figure(figsize=_SIZE, dpi=130, layout="constrained", facecolor="white")
        return self.figure

    def __exit__(self, *error: object) -> None:
        self.plt.close(self.figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
