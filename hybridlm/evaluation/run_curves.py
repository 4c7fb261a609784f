"""Curves of a run made ready for drawing: smoothed, over real time, and thinned out.

A picture is some 1,000 dots wide: of more steps than `MOST`, buckets of equally many steps are drawn. A raw curve shows
the smallest and the largest value of each bucket, so that no spike is lost; any other the bucket's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST = 1500
"""Buckets of a curve at most."""


@dataclass
class Curve:
    """Values over steps (or tokens), both (points,) float64."""

    x: np.ndarray
    y: np.ndarray


def raw(x: np.ndarray, y: np.ndarray) -> Curve:
    """All values, or the smallest and the largest of each bucket, in the order in which they came."""
    if len(x) <= 2 * MOST:
        return Curve(x, y)
    edges = _edges(len(x))
    low = np.minimum.reduceat(np.where(np.isfinite(y), y, np.inf), edges)
    high = np.maximum.reduceat(np.where(np.isfinite(y), y, -np.inf), edges)
    empty = ~np.isfinite(low)
    low[empty] = high[empty] = np.nan
    return Curve(np.repeat(_means(x, edges), 2), np.stack([low, high], 1).reshape(-1))


def thinned(x: np.ndarray, y: np.ndarray) -> Curve:
    """All values, or the mean of each bucket over those that are finite."""
    if len(x) <= MOST:
        return Curve(x, y)
    edges = _edges(len(x))
    return Curve(_means(x, edges), _means(y, edges))


def trailing_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window` - 1 before it (fewer at the start), over those that are finite."""
    finite = np.isfinite(y)
    sums, counts = np.cumsum(np.where(finite, y, 0.0)), np.cumsum(finite)
    sums[window:] = sums[window:] - sums[:-window]
    counts[window:] = counts[window:] - counts[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def smoothing_window(steps: int) -> int:
    """Steps that a smoothed curve looks back over: a fiftieth of the run, at least 10, at most 1,000; of a short run a
    quarter."""
    return max(1, min(1000, max(10, steps // 50), steps // 4))


def real_rate(tokens: np.ndarray, seconds: np.ndarray, window: int) -> np.ndarray:
    """(steps,) tokens per second of real time over the last `window` steps, validation, samples and checkpoints
    included; not-a-number for the first step, which nothing comes before."""
    rate = np.full(len(tokens), np.nan)
    before = np.maximum(np.arange(len(tokens)) - window, 0)
    passed = seconds - seconds[before]
    np.divide(tokens - tokens[before], passed, out=rate, where=passed > 0)
    return rate


def _edges(count: int) -> np.ndarray:
    """Where the buckets begin."""
    return np.linspace(0, count, MOST, endpoint=False).astype(np.int64)


def _means(y: np.ndarray, edges: np.ndarray) -> np.ndarray:
    finite = np.isfinite(y)
    counts = np.add.reduceat(finite.astype(np.int64), edges)
    sums = np.add.reduceat(np.where(finite, y, 0.0), edges)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
