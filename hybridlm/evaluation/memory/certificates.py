"""What `certify` found of models that the suite has kept, beside the runs that they are of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.families import mixer_order
from hybridlm.evaluation.memory.recipe import named_recipe
from hybridlm.evaluation.memory.store import key_of
from hybridlm.evaluation.memory.summary import value_text
from hybridlm.evaluation.memory.table import Cell, Table

FOLDER = "certificates"
"""Below the folder of records: a file of `hybridlm certify --out` for each model."""
_HEADER = ["task", "form", "model", "seeds", "verdict", "heads", "margin of answers", "of decisions"]


def read_certificates(records_folder: str | Path) -> list[dict[str, Any]]:
    """All of them. Raises UserError for a file that is none, or that is of no kept run."""
    found = []
    for path in sorted((Path(records_folder) / FOLDER).glob("*.json")):
        try:
            facts = json.loads(path.read_bytes())
            key_of(facts["run"])
            assert facts["verdict"] in ("correct", "wrong", "open")
        except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError):
            raise UserError(
                f"certificates {path}: not written by `hybridlm certify` of a model that `memory-suite --keep` has "
                "kept. Take the file out of the folder."
            ) from None
        found.append(facts)
    return found


def certificate_table(certificates: Iterable[Mapping[str, Any]]) -> Table | None:
    """A row for each task, form and model that was certified alike; the margins are the smallest of its seeds."""
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for facts in certificates:
        run = facts["run"]
        row = (run["task"], run["form"], _model(run), _verdict(facts), str(facts["heads"] or "as a whole"))
        alike.setdefault(row, []).append(facts)
    rows = []
    for (task, form, model, verdict, heads), inside in sorted(alike.items(), key=lambda row: _order(row[1][0]["run"])):
        seeds = ", ".join(str(seed) for seed in sorted(facts["run"]["seed"] for facts in inside))
        margins = [_smallest(inside, f"margin_of_{what}") for what in ("answers", "decisions")]
        rows.append([Cell(text) for text in (task, form, model, seeds, verdict, heads, *margins)])
    return Table(_HEADER, rows) if rows else None


def _order(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["task"], run["form"], mixer_order(run["mixer"]), _model(run)


def _model(run: Mapping[str, Any]) -> str:
    recipe, changed = named_recipe(run["changed"])
    changes = [f"{name}={value_text(value)}" for name, value in sorted(changed.items())]
    return ", ".join([run["mixer"], *([recipe] if recipe else []), *changes])


def _verdict(facts: Mapping[str, Any]) -> str:
    if facts["verdict"] == "correct":
        return f"correct at every length, in {' and '.join(facts['holds_in'])}"
    if facts["verdict"] == "wrong":
        return f"wrong at length {len(facts['word'])}"
    return f"open beyond length {facts['all_words_to']}"


def _smallest(certificates: Sequence[Mapping[str, Any]], name: str) -> str:
    margins = [facts[name] for facts in certificates if facts[name] is not None]
    return f"{min(margins):.2g}" if margins else "-"
