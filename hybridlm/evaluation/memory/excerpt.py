"""The part of the results that a README shows: some tasks, some mixers, between `<!-- memory -->` and
`<!-- /memory -->`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evaluation.between import check_between, write_between
from hybridlm.evaluation.memory.summary import summarize
from hybridlm.evaluation.memory.table import overview_table

BEGIN, END = "<!-- memory -->", "<!-- /memory -->"
TASKS = (
    "copy_first_symbol_100", "corridor_two", "flip_flop", "text", "denoising_late", "selective_copying", "mqar",
    "mnist",
)  # fmt: skip
"""Some that need a persistent memory, one that needs both kinds, recall, and one that needs a fading one."""
MIXERS = ("bmru", "lru", "rglru", "mamba2", "attention", "gru", "rglru+bmru", "lru bmru")


def excerpt(records: Iterable[dict[str, Any]]) -> str:
    """The last and hardest test of each task, quick form and standard recipe, as Markdown. Raises UserError where no
    such run is on record."""
    groups = [
        group
        for group in summarize(records)
        if group.form == "quick" and group.standard and group.task in TASKS and group.mixer in MIXERS
    ]
    if not groups:
        raise UserError(
            "records: none is of the tasks, mixers and form that a README shows. Run hybridlm memory-suite."
        )
    groups.sort(key=lambda group: TASKS.index(group.task))
    seeds = sorted({seed for group in groups for seed in group.seeds})
    fewest = min(len(group.seeds) for group in groups)
    count = f"{fewest}" if fewest == len(seeds) else f"{fewest} to {len(seeds)}"
    said = (
        "Error rates (`denoising_late`: squared error, where always answering 0 gives 1), each of the last and hardest "
        f"test of a task, means of {count} seed{'s' * (len(seeds) > 1)}:"
    )
    return f"{said}\n\n{overview_table(groups).markdown()}"


def check_excerpt(page: str | Path) -> None:
    """Raises UserError where a page has no place for it."""
    check_between(page, BEGIN, END)


def write_excerpt(records: Iterable[dict[str, Any]], page: str | Path) -> None:
    """Puts it between the markers of a page. Raises UserError where they are missing."""
    write_between(page, excerpt(records), BEGIN, END)
