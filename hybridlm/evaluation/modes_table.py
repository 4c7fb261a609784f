"""The table of modes as Markdown, and its place in a page: between `<!-- modes -->` and `<!-- /modes -->`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers

import hybridlm
from hybridlm.evaluation.loading import quiet_transformers
from hybridlm.evaluation.modes import MODES
from hybridlm.evaluation.modes_models import build
from hybridlm.evaluation.modes_trial import Outcome, check_sensitive, try_mode

BEGIN, END = "<!-- modes -->", "<!-- /modes -->"

Table = dict[str, dict[str, Outcome]]
"""Model -> mode -> outcome."""


def run(models: Mapping[str, Callable[[], Any]], progress: Callable[[str], None] | None = None) -> Table:
    """Every mode with every model."""
    table: Table = {}
    with _silent():
        for name, make in models.items():
            model, draft = build(make), build(make, seed=1)
            check_sensitive(model)
            table[name] = {label: try_mode(mode, model, draft) for label, mode in MODES.items()}
            if progress is not None:
                verdicts = [outcome.verdict for outcome in table[name].values()]
                progress(f"{name}: {', '.join(f'{verdicts.count(v)} {v}' for v in ('works', 'refused', 'wrong'))}")
    return table


def render(table: Table) -> str:
    """Rows are modes, columns models; what is not `works` has a footnote. The versions come last."""
    notes: list[str] = []

    def cell(outcome: Outcome) -> str:
        if outcome.verdict == "works":
            return "works"
        if outcome.detail not in notes:
            notes.append(outcome.detail)
        return f"{outcome.verdict} <sup>{notes.index(outcome.detail) + 1}</sup>"

    names = list(table)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in MODES:
        lines.append(f"| {label} | " + " | ".join(cell(table[name][label]) for name in names) + " |")
    modules: tuple[Any, ...] = (hybridlm, torch, transformers)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    lines += ["", *(f"{number}. {_plain(note)}" for number, note in enumerate(notes, 1))]
    lines += [""] * bool(notes) + [f"Small models with random weights, on a CPU, with {versions}."]
    return "\n".join(lines)


def _plain(note: str) -> str:
    """An exception's line cannot bring Markdown or a machine's folders into a page."""
    return note.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


@contextmanager
def _silent() -> Iterator[None]:
    """Models say which kernels they miss and what they do not support: the table says what comes of it."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
