"""Pictures of scores: one for a family of tasks, and an overview. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlm.evaluation.memory.families import PUBLISHED, Family, by_family, mixer_order
from hybridlm.evaluation.memory.panels import Panel, panels_of
from hybridlm.evaluation.memory.styles import Style, styles
from hybridlm.evaluation.memory.summary import Group, Score, columns_of
from hybridlm.evaluation.memory.table import length_text, number
from hybridlm.evaluation.plots import _pyplot, _save

_ACROSS = 5
"""Panels of failing lengths side by side."""
_LINE, _FILLED = 0.15, 0.72
"""Inches that a name needs, and the share of a panel's height that its axes fill."""
_REACH = (-0.1, 1.04)
"""Heights of names, in units of the axes' height."""


@dataclass(frozen=True)
class Picture:
    """family None: the overview."""

    path: Path
    form: str
    family: Family | None
    title: str


def draw(groups: Sequence[Group], folder: str | Path) -> list[Picture]:
    """Writes a PNG for each form and family, and an overview of each form, of the standard recipe's runs.

    Raises UserError where matplotlib is missing or the folder cannot be written into.
    """
    plt, drawn = _pyplot(), []
    groups = [group for group in groups if group.standard]
    for form in dict.fromkeys(group.form for group in groups):
        here = [group for group in groups if group.form == form]
        name, title = f"overview_{form}.png", f"The hardest test of every task, {form} form"
        jobs: list[tuple[str, Family | None, str, Any]] = [(name, None, title, overview_figure(plt, here))]
        for family, tasks in by_family(group.task for group in here).items():
            inside = [group for group in here if group.task in tasks]
            panels = panels_of(inside, family.counted)
            if panels:
                title = f"{family.title}, {form} form"
                jobs.append((f"{family.name}_{form}.png", family, title, curves_figure(plt, panels, title)))
            if any(_failing(group) for group in inside):
                title = f"{family.title}, failing lengths, {form} form"
                jobs.append((f"{family.name}_failing_{form}.png", family, title, failing_figure(plt, inside, title)))
        for name, family, title, figure in jobs:
            try:
                _save(figure, Path(folder) / name)
            finally:
                plt.close(figure)
            drawn.append(Picture(Path(folder) / name, form, family, title))
    return drawn


def curves_figure(plt: Any, panels: Sequence[Panel], title: str) -> Any:
    """A panel each; every mixer is a line, moved a little to its own place across, with bars from the best to the worst
    seed, and its name at the right."""
    columns = 1 if len(panels) == 1 else 2
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, squeeze=False, figsize=(10, 0.5 + (4.2 if columns == 1 else 3.2) * lines), dpi=120,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize=12)
    looks = styles(sorted({mixer for panel in panels for mixer in panel.curves}, key=mixer_order))
    for axis, panel in zip(axes.flat, panels, strict=False):
        _curves(axis, panel, looks)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def _curves(axis: Any, panel: Panel, looks: dict[str, Style]) -> None:
    axis.set_title(panel.title, fontsize=10)
    axis.set_ylabel(panel.label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    if panel.lengths:
        axis.set_xscale("log")
        axis.set_xlabel("length of the sequence", fontsize=9)
    if panel.floor:
        axis.set_yscale("log")
    axis.set_ylim(*panel.limits)
    axis.set_xlim(*panel.span)
    axis.set_xticks(panel.places, panel.names, minor=False)
    axis.minorticks_off()
    ends = {}
    for at, (mixer, scores) in enumerate(panel.curves.items()):
        xs, middles, bars = panel.points(at, scores)
        style = looks[mixer]
        axis.errorbar(
            xs, middles, yerr=bars, color=style.color, marker=style.marker, label=mixer, markersize=5,
            linestyle=style.line if panel.lengths else "none", linewidth=1.0, elinewidth=0.9, alpha=0.9,
        )  # fmt: skip
        if xs:
            ends[mixer] = (xs[-1], middles[-1])
    if panel.floor:
        _zero_tick(axis, panel.floor)
    if panel.lengths:
        _names(axis, ends, looks)
    else:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _zero_tick(axis: Any, floor: float) -> None:
    """The bottom of a logarithmic axis, where 0 and everything below it is drawn, says so."""
    ticks = [tick for tick in axis.get_yticks() if floor * 1.5 < tick <= axis.get_ylim()[1]]
    axis.set_yticks([floor, *ticks], ["0", *(f"$10^{{{round(math.log10(tick))}}}$" for tick in ticks)])
    axis.yaxis.minorticks_off()


def _names(axis: Any, ends: dict[str, tuple[float, float]], looks: dict[str, Style]) -> None:
    """The mixers' names right of the axes, next to where their lines end, none over another."""
    to_axes = axis.transScale + axis.transLimits
    wanted = {mixer: float(to_axes.transform(end)[1]) for mixer, end in ends.items()}
    place = {mixer: at for at, mixer in enumerate(wanted)}
    order = sorted(wanted, key=lambda mixer: (wanted[mixer], -place[mixer]))  # of equals the first is on top
    gap = _LINE / (_FILLED * axis.get_figure().get_figheight() / axis.get_gridspec().nrows)
    for mixer, height in zip(order, spread([wanted[mixer] for mixer in order], gap), strict=True):
        color = looks[mixer].color
        axis.annotate(
            mixer, ends[mixer], xytext=(1.05, height), textcoords="axes fraction", fontsize=8, va="center", color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "linestyle": ":", "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved apart to a distance of at least `gap`, each cluster around its mean and inside `_REACH`,
    where there is room for all."""
    clusters: list[list[float]] = []  # of the heights less what the gaps below them take up
    for at, height in enumerate(heights):
        clusters.append([height - gap * at])
        while len(clusters) > 1 and _mean(clusters[-2]) > _mean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    low, high = _REACH[0], _REACH[1] - gap * (len(heights) - 1)
    flat = [min(max(_mean(cluster), low), max(low, high)) for cluster in clusters for _ in cluster]
    return [height + gap * at for at, height in enumerate(flat)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def failing_figure(plt: Any, groups: Sequence[Group], title: str) -> Any:
    """A panel for each task: a row for each mixer with its median, a line over its seeds, and an arrow where it never
    failed; what was published is a dashed line."""
    tasks = [task for task in dict.fromkeys(group.task for group in groups) if any(
        _failing(group) for group in groups if group.task == task
    )]  # fmt: skip
    mixers = sorted({group.mixer for group in groups}, key=mixer_order)
    columns = min(_ACROSS, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(
        lines, columns, squeeze=False, sharey=True, layout="constrained", dpi=120,
        figsize=(max(6.0, 2.0 * columns + 1.0), 1.2 + (0.8 + 0.2 * len(mixers)) * lines),
    )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("length; arrow: never failed up to there; dashed: published", fontsize=9)
    looks = styles(mixers)
    for axis, task in zip(axes.flat, tasks, strict=False):
        _failing_panel(axis, task, {group.mixer: group for group in groups if group.task == task}, looks)
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(mixers)), mixers, fontsize=8)
    axes[0, 0].set_ylim(len(mixers) - 0.5, -0.5)
    return figure


def _failing_panel(axis: Any, task: str, groups: dict[str, Group], looks: dict[str, Style]) -> None:
    test = next(score.test for score in map(_failing, groups.values()) if score is not None)
    scores = {mixer: group.scores.get(test) for mixer, group in groups.items()}
    limit = max(score.length for score in scores.values() if score is not None)
    axis.set_xscale("log")
    axis.set_xlim(0.8, limit * 3)
    axis.set_title(task, fontsize=9)
    axis.set_xticks([10.0**power for power in range(0, 1 + int(math.log10(limit)), 2)])
    axis.minorticks_off()
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    for row, mixer in enumerate(looks):
        score, style = scores.get(mixer), looks[mixer]
        if score is None or not score.values:
            why = "-" if score is None else "n/a" if score.skipped else "diverged" if score.diverged else "-"
            axis.text(1.0, row, why, fontsize=7, color="grey", va="center")
            continue
        low, middle, high = (min(value, limit) for value in (score.low, score.middle, score.high))
        axis.plot([low, high], [row, row], color=style.color, linewidth=1.2)
        never = math.isinf(score.middle)
        axis.plot(middle, row, color=style.color, marker=">" if never else style.marker, markersize=8 if never else 5)
        if math.isinf(score.high) and not never:
            axis.plot(high, row, color=style.color, marker=">", markersize=4)
    if PUBLISHED.get(task):
        axis.axvline(PUBLISHED[task], color="black", linestyle="--", linewidth=0.8)


def overview_figure(plt: Any, groups: Sequence[Group]) -> Any:
    """Tasks down, mixers across, the hardest test of each task; dark is good. The numbers are those of the table."""
    from matplotlib.patches import Rectangle

    mixers = sorted({group.mixer for group in groups}, key=mixer_order)
    tasks = list(dict.fromkeys(group.task for group in groups))
    figure, axis = plt.subplots(
        figsize=(2.8 + max(3.5, 0.64 * len(mixers)), 1.9 + 0.25 * len(tasks)), dpi=120, layout="constrained"
    )
    shades = plt.get_cmap("YlGnBu")
    labels = []
    for row, task in enumerate(tasks):
        here = {group.mixer: group for group in groups if group.task == task}
        hardest = columns_of(list(here.values()))[-1]
        labels.append(f"{task}, {hardest}")
        for column, mixer in enumerate(mixers):
            score = here[mixer].scores.get(hardest) if mixer in here else None
            good = goodness(score) if score is not None and score.values else None
            face = "#eeeeee" if good is None else shades(0.08 + 0.84 * good)
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor="white"))
            ink = "white" if good is not None and good > 0.55 else "black"
            axis.text(column, row, _short(score), ha="center", va="center", fontsize=7, color=ink)
    families = list(by_family(tasks).values())
    for row in [sum(map(len, families[:at])) for at in range(1, len(families))]:
        axis.axhline(row - 0.5, color="black", linewidth=0.8)
    axis.set_xlim(-0.5, len(mixers) - 0.5)
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_xticks(range(len(mixers)), mixers, rotation=35, ha="left", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(tasks)), labels, fontsize=8)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    meaning = "errors: dark is 0, light is 1 and above\nfailing lengths: dark is none; their logarithm counts"
    axis.set_xlabel(meaning, fontsize=8)
    return figure


def goodness(score: Score) -> float:
    """1: no error, or no failing length; 0: an error of 1 and above, or failing at once. Lengths count by their
    logarithm."""
    if score.kind == "failing length":
        return min(1.0, math.log(max(1.0, score.middle)) / math.log(max(2, score.length)))
    return 1 - min(1.0, score.middle)


def _short(score: Score | None) -> str:
    if score is None:
        return "-"
    if not score.values:
        return "n/a" if score.skipped else "div." if score.diverged else "-"
    mark = "†" if score.diverged else ""
    if score.kind == "failing length":
        return length_text(score.middle, score.length).replace(" ", "") + mark
    return number(score.middle) + mark


def _failing(group: Group) -> Score | None:
    """The score of its test for failing lengths, if it has one. A test that was skipped or diverged in every run has
    none."""
    return next((score for score in group.scores.values() if score.kind == "failing length"), None)
