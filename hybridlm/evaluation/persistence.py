"""How long a state lasts: a `bmru` and an `lru` cell set once, then left alone.

Both are the cells that models use, in bf16, with the weights they start with. The first input drives them; every input
behind it is zero. What is read is the state that a cache would carry, beside what the first input wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hybridlm.errors import UserError
from hybridlm.evaluation.plots import _pyplot, _save
from hybridlm.model.cell_hybridlm import Cell, State
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM

CELLS = ("bmru", "lru")
CHUNK = 10_000


@torch.no_grad()
def persistence(steps: int = 1_000_000, width: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """One row for 0 blank steps, each power of ten up to `steps`, and `steps`.

    A row: `step`, and for each cell its name (mean |state| as a share of what was written) and `name_unchanged`
    (whether every bit is as it was written). Raises UserError for steps or width below 1.
    """
    for name, value in (("steps", steps), ("width", width)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1.")
    marks = sorted({0, steps} | {10**k for k in range(len(str(steps))) if 10**k <= steps})
    rows: list[dict[str, Any]] = [{"step": mark} for mark in marks]
    for name in CELLS:
        torch.manual_seed(seed)
        config = HybridLMConfig(pattern=name, hidden_size=width, num_attention_heads=1, vocab_size=2)
        cell = next(module for module in HybridLMForCausalLM(config).bfloat16().modules() if isinstance(module, Cell))
        _, states = cell(
            3 * torch.randn(1, 1, width).bfloat16(), cell.initial_state(1, torch.device("cpu")), None, None
        )
        written = state = {key: steps_[:, -1] for key, steps_ in states.items()}
        at = 0
        for row in rows:
            state, at = _blank(cell, state, row["step"] - at, width), row["step"]
            row[name] = _size(state) / _size(written)
            row[f"{name}_unchanged"] = all(torch.equal(state[key], written[key]) for key in state)
    return rows


def _blank(cell: Cell, state: State, steps: int, width: int) -> State:
    """The state after `steps` zero inputs."""
    while steps > 0:
        length = min(steps, CHUNK)
        _, states = cell(torch.zeros(1, length, width, dtype=torch.bfloat16), state, None, None)
        state, steps = {key: each[:, -1].clone() for key, each in states.items()}, steps - length
    return state


def _size(state: State) -> float:
    """Mean modulus over the channels; the parts of a complex state belong together."""
    return torch.stack(list(state.values())).double().norm(dim=0).mean().item()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, one line each."""
    lines = ["blank steps   bmru: left, bits        lru: left"]
    for row in rows:
        bits = "unchanged" if row["bmru_unchanged"] else "CHANGED"
        lines.append(f"{row['step']:>11,}   {row['bmru']:>10.6f}  {bits:<10}   {row['lru']:>10.3e}")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], out_png: str | Path) -> Path:
    """What is left of the state against blank steps, both axes logarithmic. Returns the path. Raises UserError without
    matplotlib."""
    plt = _pyplot()
    rows = [row for row in rows if row["step"] > 0]
    figure, axis = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    try:
        for name, style in (("bmru", "tab:green"), ("lru", "tab:blue")):
            values = [max(row[name], 1e-12) for row in rows]
            axis.plot([row["step"] for row in rows], values, "o-", color=style, label=name)
        axis.set(
            xscale="log",
            yscale="log",
            ylim=(1e-12, 10),
            xlabel="steps without input",
            ylabel="share of the state that is left",
        )
        axis.set_title("A state that is set once (below 1e-12 drawn at 1e-12)", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend()
        _save(figure, Path(out_png))
    finally:
        plt.close(figure)
    return Path(out_png)
