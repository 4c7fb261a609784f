"""Training: tokens per second of a step (forward, backward, AdamW) and its memory, beside the rate of matrix products.

    ceiling   rate of the products / (6 * parameters)          tokens per second if nothing else took time
    share     tokens per second / ceiling

A training step multiplies each weight with each token three times, 2 operations each: forward, and for the gradients of
input and weight. The rate is measured in the same rounds, in the precision of the step.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hybridlm.bench import paths
from hybridlm.bench.cells import Cell, Outcome, take_turns
from hybridlm.bench.peers import OURS, Size, check_names, fit
from hybridlm.bench.timing import Memory, check_counts, ratio, seconds_of, synchronize, unknown_memory
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import quiet_transformers

LENGTHS = (512, 2048, 8192, 32768)
ALONE = 8192
"""Beyond this length the models of this package are measured alone."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""bf16: autocast; weights and optimizer stay in fp32."""
LIMIT = 600.0


class TrainingCell:
    """A model of one size, trained on random tokens of one length."""

    def __init__(self, size: Size, length: int, rows: int, precision: str, device: str):
        self.size, self.length, self.rows, self.precision, self.device = size, length, rows, precision, device

    def prepare(self) -> dict[str, Any]:
        self.at = torch.device(self.device)
        self.in_use = Memory(self.at)
        torch.manual_seed(0)
        self.model = self.size.build().to(self.at).train()
        # `fused`: one pass over the weights, on a CPU too; the same for every model.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = torch.randint(self.size.vocabulary, (self.rows, self.length), device=self.at)
        self.in_use.begin()
        with quiet_transformers():  # models say at their first step which kernels they miss
            self._step()
        synchronize(self.at)
        return paths.facts(self.model)

    def measure(self) -> dict[str, float]:
        synchronize(self.at)
        begun = time.perf_counter()
        loss = self._step()
        synchronize(self.at)
        seconds = time.perf_counter() - begun
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()}: a step that computes nothing right is not timed")
        return {"seconds": seconds, "memory": self.in_use.peak()}

    def _step(self) -> torch.Tensor:
        with self._precision():
            loss = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _precision(self) -> Any:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.at.type, PRECISIONS[self.precision])


def check_lengths(lengths: Sequence[int]) -> list[int]:
    """The lengths, each once. Raises UserError for one that leaves no token to be predicted."""
    for length in lengths:
        if length < 2:
            raise UserError(f"length={length}: must be at least 2, since a token is predicted from those before it.")
    return list(dict.fromkeys(lengths))


def products(device: torch.device, dtype: torch.dtype, side: int | None = None) -> Callable[[], float]:
    """A measurement of the rate of matrix products, in operations per second: of square matrices, as large as fills the
    device."""
    side = side or (8192 if device.type == "cuda" else 2048)
    x, y, out = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    call = lambda: torch.mm(x, y, out=out)  # noqa: E731
    call()
    return lambda: 2 * side**3 / seconds_of(call, device, 3)


def measure(
    names: Sequence[str],
    device: torch.device,
    *,
    parameters: int = 6_000_000,
    width: int = 256,
    vocabulary: int = 4096,
    lengths: Sequence[int] = LENGTHS,
    tokens: int = 8192,
    precisions: Sequence[str] = ("fp32",),
    rounds: int = 5,
    limit: float = LIMIT,
    apart: bool = True,
    side: int | None = None,
    allocator: str = "kept",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A row for every model, length and precision.

    tokens: of a step; a longer length makes a step of its own size. limit: seconds for the preparation of a cell, and
    for its rounds. apart: every cell in a process of its own, without which memory is not told. side: of the
    matrices whose product is timed. allocator: of ALLOCATORS, the same for every model. Raises UserError for what is
    out of range.
    """
    names, lengths, precisions = check_names(list(names)), check_lengths(lengths), list(dict.fromkeys(precisions))
    check_counts(tokens=tokens, rounds=rounds, limit=math.ceil(limit))
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}.")
    paths.check(names, device)
    sizes = {name: fit(name, parameters, width=width, vocabulary=vocabulary) for name in names}
    rates = {p: products(device, PRECISIONS[p], side) for p in precisions}
    rows = []
    for length in lengths:
        cells: dict[tuple[str, str], Cell] = {
            (name, precision): TrainingCell(size, length, max(1, tokens // length), precision, device.type)
            for precision in precisions
            for name, size in sizes.items()
            if length <= ALONE or name in OURS
        }
        outcomes, others = take_turns(
            cells,
            rounds=rounds,
            limit=limit,
            threads=torch.get_num_threads(),
            apart=apart,
            allocator=allocator,
            beside=lambda: {precision: rate() for precision, rate in rates.items()},
            progress=lambda text, length=length: progress(f"T = {length}: {text}"),
        )
        for (name, precision), outcome in outcomes.items():
            row = {"model": name, "length": length, "precision": precision, "rows": max(1, tokens // length)}
            rows.append(row | _figures(outcome, row, sizes[name], [each[precision] for each in others], apart))
    return {"sizes": [size.facts() for size in sizes.values()], "rows": rows}


def _figures(
    outcome: Outcome, row: dict[str, Any], size: Size, rates: list[float], apart: bool = True
) -> dict[str, Any]:
    if outcome.problem is not None:
        return {"problem": outcome.problem}
    step = row["rows"] * row["length"]
    speed = [step / seconds for seconds in outcome.values("seconds")]
    ceiling = [rate / (6 * size.parameters) for rate in rates[: len(speed)]]
    return {
        "tokens_per_second": statistics.median(speed),
        "share_of_ceiling": ratio(speed, ceiling),
        "ceiling_tokens_per_second": statistics.median(ceiling),
        "product_gflops": statistics.median(rates) / 1e9,
        "memory_bytes": max(outcome.values("memory")) if apart else None,
        "tokens_per_step": step,
        "rounds": len(speed),
        **paths.figures(outcome.facts),
    }


def table(result: dict[str, Any]) -> str:
    """Sizes and rows as aligned text."""
    lines = [sizes_table(result["sizes"]), ""]
    head = (
        f"{'T':>6} {'precision':<9} {'model':<15} {'tokens/s':>9} {'share':>6} {'ceiling':>8} {'MiB':>7} {'rounds':>6}"
    )
    lines.append(head)
    for row in result["rows"]:
        start = f"{row['length']:>6} {row['precision']:<9} {row['model']:<15}"
        if "problem" in row:
            lines.append(f"{start} {row['problem']}")
            continue
        memory = "?" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f}"
        lines.append(
            f"{start} {row['tokens_per_second']:>9.0f} {row['share_of_ceiling']:>6.2f} "
            f"{row['ceiling_tokens_per_second']:>8.0f} {memory:>7} {row['rounds']:>6}"
        )
    return "\n".join([*lines, *unknown_memory(result["rows"]), *paths.lines(result["rows"])])


def sizes_table(sizes: list[dict[str, Any]]) -> str:
    lines = [f"{'model':<15} {'parameters':>11} {'width':>6} {'layers':>6} {'MLP':>5}"]
    lines += [
        f"{s['family']:<15} {s['parameters']:>11,} {s['width']:>6} {s['layers']:>6} {s['mlp'] or 'none':>5}"
        for s in sizes
    ]
    return "\n".join(lines)
