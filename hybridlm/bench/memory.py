"""Memory of training, estimated and measured: what a dry run says, against the peak of a real run.

    estimated   `hybridlm.training.memory_estimate`, before anything is allocated
    in use      the most that the run had in use: on a GPU what torch allocated; on a CPU the largest resident size of a
                process that hands freed blocks back at once
    held        CPU: the largest resident size under the allocator of `hybridlm pretrain`, which keeps what it frees

Each run is a process of its own. Its baseline is taken once everything is imported and the data is prepared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hybridlm.allocator import returned_memory
from hybridlm.bench.cells import Apart, Problem
from hybridlm.bench.timing import Memory, check_counts
from hybridlm.data.prepare import prepare
from hybridlm.training.config import load_config
from hybridlm.training.dryrun import dry_run
from hybridlm.training.loop import pretrain

RECIPES: dict[str, list[str]] = {
    "recurrent": [
        "model={pattern: (rglru bmru)*3, hidden_size: 256}",
        "data.prepare.vocab_size=4096",
        "data.sequence_length=512",
        "training.batch_size=8",
    ],
    "with attention": [
        "model={pattern: rglru attention lru attention, hidden_size: 384}",
        "data.prepare.vocab_size=2048",
        "data.sequence_length=512",
        "training={batch_size: 8, micro_batch_size: 4}",
    ],
    "wide, large vocabulary": [
        "model={pattern: lru bmru mingru, hidden_size: 640}",
        "data.prepare.vocab_size=16384",
        "data.sequence_length=256",
        "training={batch_size: 8, micro_batch_size: 4}",
    ],
}
"""Name -> overrides of a recipe."""
QUICK: dict[str, list[str]] = {
    "tiny": [
        "model={pattern: rglru bmru, hidden_size: 32}",
        "data.prepare.vocab_size=300",
        "data.sequence_length=64",
        "training={batch_size: 4, micro_batch_size: 2}",
    ],
}


class MemoryCell:
    """A run of a few steps in a folder of its own."""

    def __init__(self, overrides: Sequence[str], returned: bool):
        self.overrides, self.returned = list(overrides), returned

    def prepare(self) -> dict[str, Any]:
        """Everything but the run; what is imported or compiled at its first use too."""
        self.config = load_config(None, self.overrides)
        assert self.config.data.prepare is not None
        prepare(self.config.data.prepare, lambda _: None)
        self.estimate = dry_run(self.config)
        return {}

    def measure(self) -> dict[str, float]:
        device = torch.device(self.estimate.device_type)
        memory = Memory(device)
        memory.begin()
        with returned_memory() if self.returned else nullcontext():
            pretrain(self.config)
            return {"estimated": self.estimate.memory.total, "measured": memory.peak()}


def measure(
    *, quick: bool = False, steps: int = 3, limit: float = 900.0, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """A row for every recipe, without and with gradient checkpointing; a row with a problem where a run failed."""
    check_counts(steps=steps)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in (QUICK if quick else RECIPES).items():
            for checkpointing in (False, True):
                overrides = [*_common(Path(folder)), *recipe]
                overrides += [f"data.prepare.output={Path(folder) / name.replace(' ', '-').replace(',', '')}"]
                overrides += [
                    f"training.steps={steps}",
                    f"training.gradient_checkpointing={str(checkpointing).lower()}",
                ]
                row = {"recipe": name, "gradient_checkpointing": checkpointing}
                rows.append(row | _row(overrides, Path(folder), limit))
                progress(table({"rows": rows[-1:]}).splitlines()[-1])
    return {"rows": rows}


def _common(folder: Path) -> list[str]:
    return [
        "data.prepare={sources: [{builtin: austen}], validation: {by: position, share: 0.1}}",
        "validation={max_windows: 4, batch_size: 4}",
        "checkpoint.every=0",
        "run.resume=never",
        f"run.folder={folder / 'runs'}",
    ]


def _row(overrides: list[str], folder: Path, limit: float) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    kinds = {"in_use": True, "held": False} if not torch.cuda.is_available() else {"in_use": False}
    for kind, returned in kinds.items():
        run = f"run.name=run-{len(list(folder.glob('runs/*')))}"
        cell = Apart(MemoryCell([*overrides, run], returned), torch.get_num_threads(), "system")
        try:
            cell.wait()
            cell.call("prepare", limit)
            found = cell.call("measure", limit)
        except Problem as error:
            return {"problem": str(error)}
        finally:
            cell.close()
        figures |= {"estimated_bytes": int(found["estimated"]), f"{kind}_bytes": int(found["measured"])}
    return figures | {"ratio": figures["estimated_bytes"] / figures["in_use_bytes"]}


def table(result: dict[str, Any]) -> str:
    """The rows as aligned text, in MiB."""
    lines = [f"{'recipe':<24}{'checkpointing':>14}{'estimated':>11}{'in use':>9}{'ratio':>7}{'held':>9}"]
    for row in result["rows"]:
        start = f"{row['recipe']:<24}{'yes' if row['gradient_checkpointing'] else 'no':>14}"
        if "problem" in row:
            lines.append(f"{start} {row['problem']}")
            continue
        held = f"{row['held_bytes'] / 2**20:.0f}" if "held_bytes" in row else ""
        lines.append(
            f"{start}{row['estimated_bytes'] / 2**20:>11.0f}{row['in_use_bytes'] / 2**20:>9.0f}{row['ratio']:>7.2f}"
            f"{held:>9}"
        )
    return "\n".join(lines)
