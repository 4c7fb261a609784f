"""Pictures of a run. matplotlib is optional (extra `plot`) and loaded only here; the Agg backend needs no screen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError, install_command
from hybridlm.training.metrics import read_rows

_SMOOTH = 0.9
"""Weight of the past in the running mean of the loss."""


class NoMatplotlibError(UserError):
    """matplotlib is not installed."""


def loss_curve(metrics_jsonl: str | Path, out_png: str | Path) -> Path:
    """Training loss over steps, the validation points on it, and epsilon on a second axis where the run had one.

    Reads a run's metrics.jsonl, writes a PNG (aside, then renamed) and returns its path. Raises UserError where
    matplotlib or the metrics are missing.
    """
    plt = _pyplot()
    metrics, out = Path(metrics_jsonl), Path(out_png)
    if not metrics.is_file():
        raise UserError(f"metrics file {metrics}: there is none. Give the metrics.jsonl of a run's folder.")
    rows = read_rows(metrics)
    training = [row for row in rows if "grad_norm" in row]
    validation = [row for row in rows if "bits_per_byte" in row]
    if not training:
        raise UserError(
            f"metrics file {metrics}: it has no training step. Give the metrics.jsonl of a run that has begun to train."
        )
    figure, axis = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    try:
        _draw(axis, training, validation)
        _save(figure, out)
    finally:
        plt.close(figure)
    return out


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise NoMatplotlibError(f"Pictures need matplotlib. Run {install_command('plot')}.") from None
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def _draw(axis: Any, training: list[dict[str, Any]], validation: list[dict[str, Any]]) -> None:
    steps, losses = [row["step"] for row in training], [row["loss"] for row in training]
    axis.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="training, each step")
    axis.plot(steps, _running_mean(losses), color="tab:blue", linewidth=1.8, label="training, running mean")
    if validation:
        axis.plot(
            [row["step"] for row in validation], [row["loss"] for row in validation],
            color="tab:orange", marker="o", markersize=5, linewidth=1.2, label="validation",
        )  # fmt: skip
        last = validation[-1]
        axis.annotate(
            f"{last['bits_per_byte']:.3f} bits per byte", (last["step"], last["loss"]),
            xytext=(-8, 22), textcoords="offset points", ha="right", color="tab:orange",
        )  # fmt: skip
    axis.set(xlabel="step", ylabel="loss (nats per token)", title="Loss of the run")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    schedule = [(row["step"], row["epsilon"]) for row in training if row.get("epsilon") is not None]
    if schedule:
        second = axis.twinx()
        (line,) = second.plot(*zip(*schedule, strict=True), color="tab:green", linestyle="--", linewidth=1.2)
        second.set(ylim=(-0.02, 1.05))
        second.set_ylabel("epsilon (1: cumulative, 0: bistable)", color="tab:green")
        handles, labels = [*handles, line], [*labels, "epsilon (right axis)"]
    axis.legend(handles, labels, loc="upper right")


def _running_mean(values: list[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        means.append(mean / (1 - _SMOOTH**count))
    return means


def _save(figure: Any, out: Path) -> None:
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(aside, format="png")
            os.replace(aside, out)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"picture {out}: cannot be written ({error.strerror}). Give a path that can be.") from None
