"""What a run left on the disk, read for a report: metrics.jsonl as arrays; its settings and samples where they are.

Files are taken as they are found: a run that goes on, a torn last line, numbers that are missing. What is missing is
not-a-number in the arrays. Only metrics.jsonl has to be there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hybridlm.errors import UserError
from hybridlm.files import expanded
from hybridlm.training.metrics import read_rows
from hybridlm.training.plain_yaml import plain_value

Row = dict[str, Any]


@dataclass
class RunRecord:
    """One run."""

    name: str
    """What it is called in the report; different for each run of it."""
    metrics: Path
    """metrics.jsonl."""
    written: str
    """When metrics.jsonl was last written to, UTC."""
    training: list[Row]
    """The rows of optimizer steps."""
    validation: list[Row]
    """The rows of validations."""
    settings: dict[str, str] = field(default_factory=dict)
    """The recipe, dotted name -> value as text; empty if there is none."""
    samples: list[Row] = field(default_factory=list)
    """Rows of samples.jsonl with a step, a prompt and a text."""
    notes: list[str] = field(default_factory=list)
    """What could not be read."""

    def column(self, name: str, rows: list[Row] | None = None) -> np.ndarray:
        """(rows,) float64: a value of the training rows (or of `rows`); not-a-number where there is none."""
        return np.array([number(row.get(name)) for row in (self.training if rows is None else rows)], dtype=np.float64)

    def has(self, name: str) -> bool:
        """Whether any training row has a number of that name."""
        return any(number(row.get(name)) == number(row.get(name)) for row in self.training)


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs, each given as its folder or as its metrics.jsonl. Raises UserError for what is no run."""
    files = [_metrics_file(expanded(path)) for path in paths]
    places = [file.resolve() for file in files]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UserError(f"run {paths[index]}: it is given twice. Name every run once.")
    return [_read(file, name) for file, name in zip(files, _names(places), strict=True)]


def number(value: Any) -> float:
    """A JSON value as a float; not-a-number for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("nan")


def _metrics_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"run {path}: there is no such folder. Give the folder of a run, e.g. runs/pretrain.")
    if not (path / "metrics.jsonl").is_file():
        inside = sorted(metrics.parent for metrics in path.glob("*/metrics.jsonl"))
        hint = f" It holds runs, though: {', '.join(map(str, inside[:5]))}." if inside else ""
        raise UserError(f"run {path}: it has no metrics.jsonl, so it is no folder of a run.{hint}")
    return path / "metrics.jsonl"


def _names(files: list[Path]) -> list[str]:
    """The folders' names, with as many folders above them as it takes to tell them apart."""
    folders = [file.parent if file.name == "metrics.jsonl" else file for file in files]
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _read(file: Path, name: str) -> RunRecord:
    rows = _rows(file)
    training = [row for row in rows if "grad_norm" in row and "bits_per_byte" not in row]
    validation = [row for row in rows if "bits_per_byte" in row]
    if not training and not validation:
        what = "it has no row yet" if not rows else f"none of its {len(rows):,} rows is of a step or a validation"
        raise UserError(f"{file}: {what}. Give a run of hybridlm that has begun to train.")
    for row in [*training, *validation]:
        if number(row.get("step")) != number(row.get("step")):
            raise UserError(f"{file}: it has a row without a step. Give a run of hybridlm.")
    written = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    record = RunRecord(name, file, written, training, validation)
    try:
        record.settings = _settings(file.parent / "config.yaml")
    except (OSError, ValueError, TypeError) as error:
        record.notes.append(f"config.yaml cannot be read: {error}")
    try:
        samples = _rows(file.parent / "samples.jsonl") if (file.parent / "samples.jsonl").exists() else []
        record.samples = [row for row in samples if {"step", "prompt", "text"} <= set(row)]
    except UserError as error:
        record.notes.append(str(error))
    return record


def _rows(file: Path) -> list[Row]:
    try:
        return read_rows(file)
    except OSError as error:
        raise UserError(f"{file}: it cannot be read ({error}). Give a file that a run of hybridlm wrote.") from None


def _settings(file: Path) -> dict[str, str]:
    import yaml

    if not file.exists():
        return {}
    try:
        values = plain_value(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(values, dict):
        raise ValueError("it is no mapping of names to values")
    return dict(_flat(values))


def _flat(values: dict[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            pairs.append((f"{prefix}{name}", text))
    return pairs
