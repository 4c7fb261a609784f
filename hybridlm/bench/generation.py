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
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hybridlm.bench import paths
from hybridlm.bench.cells import Cell, Outcome, take_turns
from hybridlm.bench.peers import FAMILIES, Size, check_names, fit
from hybridlm.bench.timing import Memory, check_counts, check_each, seconds_of, synchronize, unknown_memory
from hybridlm.bench.training import sizes_table
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import quiet_transformers
from hybridlm.model.cache_hybridlm import HybridRecurrentLayer

POSITIONS = (16, 512, 2048, 8192, 32768)
CHUNK = 128
"""Tokens of a text that are read at once: few, so that reading leaves no memory behind."""
READ = 16
"""Tokens that are read of a text whose length does not matter to the state."""
SECONDS = 2.0
"""About what a way may take at a position in a round: a slow one writes fewer tokens, at least 2."""
LIMIT = 300.0


class _Stamps:
    """What `generate` writes to: when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        tokens.cpu()  # as an application that prints does; on a GPU it waits
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Text:
    """A model behind a text of `position` tokens, with which it goes on."""

    def __init__(self, model: Any, position: int, read: int):
        """read: tokens of the text that are read; keys and values of the others are filled up."""
        self.model, self.position = model, position
        # `generate` of transformers calls it so, by the class's name, too.
        self.name = "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"
        self.cache = DynamicCache(config=model.config)
        self.last = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        text = torch.randint(model.config.vocab_size, (1, read), device=model.device)
        for start in range(0, read, CHUNK):
            self.forward(text[:, start : start + CHUNK])
        for layer in self.cache.layers:
            if isinstance(layer, DynamicLayer) and position > read:
                _fill(layer, position - read)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self.name: self.cache}).logits

    def bare(self, tokens: int) -> float:
        """Seconds a token."""
        synchronize(self.model.device)
        begun = time.perf_counter()
        for _ in range(tokens):
            self.last = self.forward(self.last)[:, -1:].argmax(-1)
        synchronize(self.model.device)
        seconds = (time.perf_counter() - begun) / tokens
        _take_back(self.cache, tokens)
        return seconds

    def generate(self, tokens: int) -> float:
        """Seconds a token, the first of which is not timed: `generate` prepares there."""
        stamps = _Stamps()
        mask = torch.ones(1, self._seen() + 1, dtype=torch.long, device=self.model.device)
        self.written = self.model.generate(
            self.last, attention_mask=mask, max_new_tokens=tokens + 1, do_sample=False, streamer=stamps,
            **{self.name: self.cache},
        )  # fmt: skip
        _take_back(self.cache, tokens + 1)
        _, first, *_, last = stamps.times  # the prompt comes before the first
        return (last - first) / tokens

    def _seen(self) -> int:
        """Tokens in the cache; a state of one size goes on from round to round."""
        counting = [layer for layer in self.cache.layers if isinstance(layer, (DynamicLayer, HybridRecurrentLayer))]
        return max((int(layer.get_seq_length()) for layer in counting), default=self.position)


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


def _fill(layer: DynamicLayer, tokens: int) -> None:
    """Keys and values of so many tokens more, as random numbers."""
    assert layer.keys is not None
    shape = (*layer.keys.shape[:2], tokens, layer.keys.shape[3])
    layer.update(*(torch.randn(shape, dtype=layer.keys.dtype, device=layer.keys.device) for _ in range(2)))


def _take_back(cache: DynamicCache, tokens: int) -> None:
    """The cache as long as before, where it grows: a cell stays at its position."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            window = getattr(layer, "sliding_window", None)
            if window is None or layer.get_seq_length() < window:
                layer.crop(-tokens)


def _products(model: nn.Module) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]]:
    """The matrix products of one token: function, vector, weight. A weight of three axes is multiplied in blocks."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield F.linear, module.weight.new_ones(1, module.in_features), module.weight
        elif not isinstance(module, nn.Conv1d):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 3:
                    yield torch.bmm, weight.new_ones(weight.shape[0], 1, weight.shape[1]), weight


def cache_bytes(cache: DynamicCache, model: nn.Module) -> int:
    """Bytes of the tensors that a model remembers a text in: in its cache or, like RecurrentGemma, in its modules."""
    found: dict[int, Tensor] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            for each in value.values():
                collect(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                collect(each)

    for layer in cache.layers:
        collect(vars(layer))
    for module in model.modules():
        collect([value for name, value in vars(module).items() if name in ("conv1d_state", "recurrent_states")])
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


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
