"""The figures of a run in a report's table: how far it is, its losses, its pace."""

from __future__ import annotations

import numpy as np

from hybridlm.evaluation.run_curves import smoothing_window, trailing_mean
from hybridlm.evaluation.run_record import RunRecord
from hybridlm.training.progress import clock


def figures(run: RunRecord) -> dict[str, str]:
    """Name -> value as text, in the order of the table; what a run does not have is left out."""
    return {name: text for name, text in (_progress(run) | _losses(run) | _pace(run)).items() if text}


def differences(runs: list[RunRecord]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: dotted name -> the value of each run, "not set" where it has none.
    A run without a recipe says so in each of its cells."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    known = [run for run in runs if run.settings]
    rows = {}
    for name in names:
        values = [run.settings.get(name, "not set") if run.settings else "unknown" for run in runs]
        if len({run.settings.get(name) for run in known}) > 1:
            rows[name] = values
    return rows


def _progress(run: RunRecord) -> dict[str, str]:
    step, seconds = run.column("step"), run.column("seconds", [*run.training, *run.validation])
    tokens = run.column("tokens")
    asked = run.settings.get("training.steps", "")
    of = f" of {int(asked):,}" if asked.isdigit() else ""
    skipped = sum("grad_norm" in row and row["grad_norm"] is None for row in run.training)
    return {
        "steps": f"{step.max():,.0f}{of}" if len(step) else "none yet",
        "tokens read": _last(tokens, ",.0f"),
        "wall time": clock(float(np.nanmax(seconds))) if np.isfinite(seconds).any() else "",
        "metrics last written": run.written,
        "steps left out (fp16 overflow)": f"{skipped:,}" if skipped else "",
    }


def _losses(run: RunRecord) -> dict[str, str]:
    loss, norm = run.column("loss"), run.column("grad_norm")
    window = smoothing_window(len(loss))
    mean = f"mean of the last {min(window, len(loss)):,} steps"
    smooth = trailing_mean(loss, window)
    found = {
        f"training loss, {mean}": f"{smooth[-1]:.4f} nats per token" if len(smooth) and np.isfinite(smooth[-1]) else "",
        "largest gradient norm": f"{np.nanmax(norm):.4g}" if np.isfinite(norm).any() else "",
    }
    for name, label in (("bits_per_byte", "validation"), ("bits_per_byte_ema", "validation, averaged weights")):
        values, at = run.column(name, run.validation), run.column("step", run.validation)
        there = np.isfinite(values)
        if there.any():
            values, at = values[there], at[there]
            best = int(values.argmin())
            found[f"{label}, last"] = f"{values[-1]:.4f} bits per byte, step {at[-1]:,.0f}"
            found[f"{label}, best"] = f"{values[best]:.4f} bits per byte, step {at[best]:,.0f}"
    return found


def _pace(run: RunRecord) -> dict[str, str]:
    tokens, seconds, inside = (run.column(name) for name in ("tokens", "seconds", "tokens_per_second"))
    whole = ""
    if len(tokens) and np.isfinite(tokens[-1] / seconds[-1]):
        whole = f"{tokens[-1] / seconds[-1]:,.0f} tokens per second"
    median = f"{np.nanmedian(inside):,.0f} tokens per second" if np.isfinite(inside).any() else ""
    mfu = run.column("mfu")
    return {
        "throughput up to the last step, pauses included": whole,
        "throughput inside the steps, median": median,
        "model FLOPs utilisation, median": f"{np.nanmedian(mfu):.1%}" if np.isfinite(mfu).any() else "",
    }


def _last(values: np.ndarray, form: str) -> str:
    finite = values[np.isfinite(values)]
    return format(finite[-1], form) if len(finite) else ""
