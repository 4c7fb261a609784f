"""Generation: tokens per second and memory of greedy decoding, one token after another, at positions of a long text.

All positions and models take turns, in two ways: a bare loop over the model's forward with its cache, and `generate`,
timed from its first token to its last. How the cache gets to the position:

    this package    the text is read, some tokens at a time
    attention       the keys and values are filled up with random numbers
    Mamba, Mamba-2  a state of one size, whose steps do not know where they are: a short text is read

    overhead        time of a step of the bare loop - time of its matrix products alone, per layer

The products are those of every weight matrix with one vector, one after another in a bare loop of the same functions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer

from hybridlm.bench import paths
from hybridlm.bench.cells import Cell, Outcome, take_turns
from hybridlm.bench.peers import FAMILIES, Size, check_names, fit
from hybridlm.bench.text import GrowingText, cache_bytes
from hybridlm.bench.timing import Memory, check_counts, check_each, seconds_of, synchronize, unknown_memory
from hybridlm.bench.training import sizes_table
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import quiet_transformers

POSITIONS = (16, 512, 2048, 8192, 32768)
CHUNK = 128
"""Tokens of a text that are read at once: few, so that reading leaves no memory behind."""
READ = 16
"""Tokens that are read of a text whose length does not matter to the state."""
SECONDS = 2.0
"""About what a way may take at a position in a round: a slow one writes fewer tokens, at least 2."""
LIMIT = 300.0


class Text(GrowingText):
    """A model behind a text of `position` tokens, where it stays: what is written is taken back."""

    def __init__(self, model: Any, position: int, read: int):
        """read: tokens of the text that are read; keys and values of the others are filled up."""
        super().__init__(model)
        self.read(read, CHUNK)
        if position > read:
            self.fill(position - read)

    def bare(self, tokens: int) -> float:
        """Seconds a token."""
        synchronize(self.model.device)
        begun = time.perf_counter()
        for _ in range(tokens):
            self.step()
        synchronize(self.model.device)
        seconds = (time.perf_counter() - begun) / tokens
        self._take_back(tokens)
        return seconds

    def generate(self, tokens: int) -> float:
        """Seconds a token, the first of which is not timed."""
        seconds = statistics.fmean(self.generate_times(tokens))
        self._take_back(tokens + 1)
        return seconds

    def _take_back(self, tokens: int) -> None:
        """The cache as long as before, where it grows."""
        self.position -= tokens
        for layer in self.cache.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                window = getattr(layer, "sliding_window", None)
                if window is None or layer.get_seq_length() < window:
                    layer.crop(-tokens)


class GenerationCell:
    """A model of one size behind texts of several lengths, which take turns within a round."""

    def __init__(self, size: Size, positions: Sequence[int], tokens: int, device: str):
        self.size, self.positions, self.tokens, self.device = size, positions, tokens, device

    @torch.inference_mode()
    def prepare(self) -> dict[str, Any]:
        """Bytes of the cache and of all memory in use by position. The memory of one text is what it is without the
        caches of the others."""
        self.at = torch.device(self.device)
        in_use = Memory(self.at)
        torch.manual_seed(0)
        model = self.size.build().to(self.at).eval()
        self.products = list(_products(model))
        self.texts: dict[int, Text] = {}
        self.counts: dict[int, int] = {}
        cache: dict[int, int] = {}
        memory: dict[int, int] = {}
        with quiet_transformers():  # models say at their first call which kernels they miss
            for position in self.positions:
                read = position if FAMILIES[self.size.family].ours else min(position, READ)
                text = self.texts[position] = Text(model, position, read)
                text.generate(2)
                in_use.begin()
                step = text.bare(2)
                memory[position] = in_use.peak() - sum(cache.values())
                cache[position] = cache_bytes(text.cache, model)
                self.counts[position] = max(2, min(self.tokens, int(SECONDS / step)))
        return {"cache_bytes": cache, "memory_bytes": memory, **paths.facts(model)}

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Seconds a token, by way and position; of the products, by position too: each beside its step."""
        figures = {}
        for position, text in self.texts.items():
            count = self.counts[position]
            figures[f"bare {position}"] = text.bare(count)
            figures[f"products {position}"] = seconds_of(self._multiply, self.at, count)
            figures[f"generate {position}"] = text.generate(count)
        return figures

    def _multiply(self) -> None:
        for function, x, weight in self.products:
            function(x, weight)


def _products(model: nn.Module) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]]:
    """The matrix products of one token: function, vector, weight. A weight of three axes is multiplied in blocks."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield F.linear, module.weight.new_ones(1, module.in_features), module.weight
        elif not isinstance(module, nn.Conv1d):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 3:
                    yield torch.bmm, weight.new_ones(weight.shape[0], 1, weight.shape[1]), weight


def measure(
    names: Sequence[str],
    device: torch.device,
    *,
    parameters: int = 6_000_000,
    width: int = 256,
    vocabulary: int = 4096,
    positions: Sequence[int] = POSITIONS,
    tokens: int = 32,
    rounds: int = 5,
    limit: float = LIMIT,
    apart: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A row for every model and position, in fp32, one text at a time.

    tokens: written in each way, position and round, where that takes no longer than SECONDS. limit: seconds for the
    preparation of a model, and for its rounds. apart: every model in a process of its own, without which memory is not
    told. Raises UserError for what is out of range.
    """
    names = check_names(list(names))
    positions = check_each("position", positions)
    check_counts(tokens=tokens, rounds=rounds, limit=math.ceil(limit))
    if tokens < 2:
        raise UserError(f"tokens={tokens}: must be at least 2, since `generate` is timed between two tokens.")
    paths.check(names, device)
    sizes = {name: fit(name, parameters, width=width, vocabulary=vocabulary) for name in names}
    cells: dict[str, Cell] = {
        name: GenerationCell(size, positions, tokens, device.type) for name, size in sizes.items()
    }
    outcomes, _ = take_turns(
        cells, rounds=rounds, limit=limit, threads=torch.get_num_threads(), apart=apart, progress=progress
    )
    rows = [
        {"model": name, "position": position} | _figures(outcome, position, sizes[name], apart)
        for position in positions
        for name, outcome in outcomes.items()
    ]
    return {"sizes": [size.facts() for size in sizes.values()], "rows": rows}


def _figures(outcome: Outcome, position: int, size: Size, apart: bool = True) -> dict[str, Any]:
    if outcome.problem is not None:
        return {"problem": outcome.problem}
    bare, products, generate = (outcome.values(f"{way} {position}") for way in ("bare", "products", "generate"))
    return {
        "tokens_per_second": 1 / statistics.median(bare),
        "generate_tokens_per_second": 1 / statistics.median(generate),
        "products_microseconds": statistics.median(products) * 1e6,
        "overhead_microseconds_per_layer": statistics.median(
            (step - alone) * 1e6 / size.layers for step, alone in zip(bare, products, strict=True)
        ),
        "memory_bytes": outcome.facts["memory_bytes"][position] if apart else None,
        "cache_bytes": outcome.facts["cache_bytes"][position],
        "rounds": len(bare),
        **paths.figures(outcome.facts),
    }


def table(result: dict[str, Any]) -> str:
    """Sizes and rows as aligned text."""
    lines = [sizes_table(result["sizes"]), ""]
    lines.append(
        f"{'position':>8} {'model':<15} {'tokens/s':>9} {'generate':>9} {'us/layer':>9} {'MiB':>7} {'cache KiB':>10} "
        f"{'rounds':>6}"
    )
    for row in result["rows"]:
        start = f"{row['position']:>8} {row['model']:<15}"
        if "problem" in row:
            lines.append(f"{start} {row['problem']}")
            continue
        memory = "?" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f}"
        lines.append(
            f"{start} {row['tokens_per_second']:>9.1f} {row['generate_tokens_per_second']:>9.1f} "
            f"{row['overhead_microseconds_per_layer']:>9.0f} {memory:>7} {row['cache_bytes'] / 1024:>10.0f} "
            f"{row['rounds']:>6}"
        )
    return "\n".join([*lines, *unknown_memory(result["rows"]), *paths.lines(result["rows"])])
