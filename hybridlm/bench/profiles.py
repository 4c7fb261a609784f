"""Where the time of a training step goes: self time of every operation, as torch's profiler has it, by what it is for.

Without the kernels, scans, norms and gates are made of operations that anything else uses too, and count there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import nullcontext

from torch.profiler import ProfilerActivity, profile

from hybridlm import ops
from hybridlm.bench.peers import Size
from hybridlm.bench.timing import ALLOCATORS, check_counts
from hybridlm.bench.training import TrainingCell, check_lengths

KINDS = {
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|linear|_?addmm_.*|mkldnn_.*)",
    "scans": r"hybridlm::.*|GeneratedBackwardFor_hybridlm.*|_(Linear|Lru|Memory)Scan(Backward)?",
    "norms, gates, convolutions": r"_(Norm|Gate|Conv|Rglru|BoundedSqrt)(Backward)?",
    "softmax and loss": r"aten::(_?log_softmax.*|nll_loss.*|cross_entropy.*)",
    "optimizer": r"aten::_fused_adamw_.*|Optimizer.*",
}
"""Kind -> names of its operations, matched as a whole; anything else is OTHERS."""
OTHERS = "everything else"


def kind_of(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if re.fullmatch(names, name)), OTHERS)


def by_kind(
    size: Size,
    length: int,
    rows: int,
    *,
    precision: str = "fp32",
    allocator: str = "kept",
    path: str | None = None,
    steps: int = 3,
) -> dict[str, float]:
    """Milliseconds of a step on the CPU by kind: the mean of `steps` behind two others. path: of the scans, None: as it
    is."""
    check_lengths([length])
    check_counts(rows=rows, steps=steps)
    cell = TrainingCell(size, length, rows, precision, "cpu")
    with ALLOCATORS[allocator](), nullcontext() if path is None else ops.using(path):
        cell.prepare()
        cell.measure()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                cell.measure()
    spent: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    return {kind: spent[kind] for kind in (*KINDS, OTHERS)}


def table(columns: dict[str, dict[str, float]]) -> str:
    """Markdown: a column for each way, milliseconds and share of its step."""
    lines = ["| milliseconds of a step | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    totals = {way: sum(spent.values()) for way, spent in columns.items()}
    for kind in (*KINDS, OTHERS):
        cells = (f"{spent[kind]:,.0f} ({spent[kind] / totals[way]:.0%})" for way, spent in columns.items())
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines.append("| **together** | " + " | ".join(f"**{total:,.0f}**" for total in totals.values()) + " |")
    return "\n".join(lines)
