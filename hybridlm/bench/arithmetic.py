"""Arithmetic of training on 8, 64 and 1,024 GPUs: time, bytes and memory of a step, from a recipe and assumptions.

    compute         FLOP of the step / (GPUs * MFU * peak), a third more with gradient checkpointing
    weights         fsdp: gathered beside the compute, a layer ahead; what takes longer than the compute shows
    gradients       exchanged beside the backward of a step's last micro-batch, 2/3 of its compute; the rest shows
    states          sequence: each layer waits for them, so all of it shows
    step            compute + what shows

A ring over all GPUs of several machines leaves a machine through all its network cards at once, an eighth of the bytes
through each; a ring between the copies of fsdp goes through one. Rings over many machines wait for their data to come
around. ddp does not: NCCL sends its few large buckets over trees. Nothing here is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridlm import HybridLMConfig
from hybridlm.bench.traffic import Shape, Traffic, shape_of, traffic
from hybridlm.evaluation.between import check_between, write_between
from hybridlm.training.arrangement import sharded_over
from hybridlm.training.config import load_config
from hybridlm.training.memory_estimate import estimate_memory
from hybridlm.training.parallel import data_places
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.setup import micro_batch_size, tokens_per_step

BEGIN, END = "<!-- arithmetic -->", "<!-- /arithmetic -->"
TOKENS = 26_000_000_000
"""Of the run: 20 for each parameter."""


@dataclass(frozen=True)
class Assumptions:
    """What the arithmetic takes for given; SI units."""

    peak: float = 989e12
    """FLOP/s of bf16 products, dense: H100 SXM, by its data sheet."""
    mfu: float = 0.25
    """The share of it that a step's compute reaches, scans, norms and optimizer included. A guess."""
    node: int = 8
    """GPUs of a machine."""
    nvlink: float = 450e9
    """Bytes/s that a GPU sends inside its machine: NVLink 4, half of its 900 GB/s."""
    network: float = 50e9
    """Bytes/s that a GPU sends to another machine: a network card of its own with 400 Gb/s (InfiniBand NDR)."""
    reached: float = 0.8
    """The share of both that collectives reach. A guess."""
    hop: float = 2e-6
    """Seconds of latency from one GPU to the next inside a machine. A guess."""
    far_hop: float = 5e-6
    """And to one in another machine. A guess."""
    start: float = 20e-6
    """Seconds until a collective that nothing hides has begun. A guess."""


@dataclass(frozen=True)
class Case:
    """A recipe on so many GPUs."""

    name: str
    gpus: int
    config: PretrainConfig


@dataclass(frozen=True)
class Step:
    """An optimizer step; seconds and bytes of each GPU."""

    tokens: int
    """Over all GPUs."""
    forwards: int
    """Micro-batches of a GPU."""
    sent: Traffic
    compute: float
    weights: float
    """Of gathering them, hidden or not; likewise the next two."""
    gradients: float
    states: float
    shown: float
    """What of the three is not hidden behind the compute."""

    @property
    def seconds(self) -> float:
        return self.compute + self.shown

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def run_seconds(self) -> float:
        return TOKENS / self.tokens_per_second


def cases(recipe: str | Path) -> list[Case]:
    """What the page has: three ways to deal out rows of the recipe's length, and long sequences, on three sizes."""
    found = []
    for gpus in (8, 64, 1024):
        rows, micro = (2048, 2) if gpus == 1024 else (512, 4)
        batch = [f"training.batch_size={rows}", f"training.micro_batch_size={micro}"]
        batch += ["training.gradient_checkpointing=false"]
        ways = {"ddp": ["parallel.kind=ddp"], "fsdp over all": ["parallel.kind=fsdp"]}
        if gpus > 8:
            ways["fsdp, a copy in each machine"] = ["parallel={kind: fsdp, shard: 8}"]
        found += [Case(name, gpus, load_config(recipe, [*batch, *way])) for name, way in ways.items()]
        parts, rows = (64, 32) if gpus == 1024 else (8, 8)
        long = ["data.sequence_length=131072", f"training.batch_size={rows}", "training.micro_batch_size=1"]
        long += ["training.gradient_checkpointing=true", f"parallel={{kind: fsdp, shard: 8, sequence: {parts}}}"]
        found.append(Case(f"131,072 tokens, each sequence over {parts}", gpus, load_config(recipe, long)))
    return found


def step(case: Case, shape: Shape, given: Assumptions = Assumptions()) -> Step:
    """Raises UserError where the GPUs cannot be arranged as the recipe asks."""
    config, gpus = case.config, case.gpus
    sent, tokens = traffic(config, shape, gpus), tokens_per_step(config)
    places, part = data_places(config, gpus), sharded_over(config, gpus)
    parts, layers = gpus // places, shape.layers
    forwards = config.training.batch_size // (micro_batch_size(config, gpus) * places)
    again = 4 / 3 if config.training.gradient_checkpointing else 1.0
    compute = again * shape.flops * tokens / (gpus * given.mfu * given.peak)
    gathers = forwards * (
        2 * layers * (2 if config.parallel.reshard else 1) + 1
    )  # maps and rest of each layer; the root
    weights = _ring(sent.gather, part, given) + gathers * _latency(part, given)
    gradients = _ring(sent.scatter, part, given) + (2 * layers + 1) * _latency(part, given)
    if part == 1:
        gradients = _ring(sent.reduce, gpus, given)
    elif part < gpus:
        gradients += sent.reduce / ((given.network if part >= given.node else given.nvlink) * given.reached)
    waits = (2 if again == 1.0 else 3) * 2 * layers * forwards if parts > 1 else 0  # states and windows of each layer
    states = _ring(sent.states, parts, given) + waits * (given.start + _latency(parts, given))
    shown = max(0.0, weights - compute) + max(0.0, gradients - compute / forwards * 2 / 3) + states
    return Step(tokens, forwards, sent, compute, weights, gradients, states, shown)


def memory(case: Case) -> float:
    """Bytes of a GPU, as a dry run estimates them: of one and of two repeats of the pattern, and on from there, since
    each further repeat adds the same."""
    blocks = HybridLMConfig(**case.config.model).block_types
    unit = next(n for n in range(1, len(blocks) + 1) if blocks == blocks[:n] * (len(blocks) // n))
    one, two = (_estimate(case, " ".join(blocks[:unit] * repeats)) for repeats in (1, 2))
    return one + (len(blocks) // unit - 1) * (two - one)


def _estimate(case: Case, pattern: str) -> int:
    config = copy.copy(case.config)
    config.model = config.model | {"pattern": pattern}
    model = HybridLMConfig(**config.model, vocab_size=_vocabulary(config))
    micro = micro_batch_size(config, case.gpus)
    return estimate_memory(config, model, micro, device_type="cuda", processes=case.gpus).total


def _vocabulary(config: PretrainConfig) -> int:
    assert config.data.prepare is not None
    return config.data.prepare.vocab_size or HybridLMConfig.vocab_size


def _ring(sent: float, gpus: int, given: Assumptions) -> float:
    """Seconds of a ring over so many neighbouring GPUs, of which each sends so many bytes."""
    slowest = given.nvlink if gpus <= given.node else min(given.nvlink, given.node * given.network)
    return sent / (slowest * given.reached)


def _latency(gpus: int, given: Assumptions) -> float:
    """Seconds until a ring's data has come around."""
    machines = max(1, gpus // given.node)
    far = machines if machines > 1 else 0
    return (max(0, gpus - 1 - far)) * given.hop + far * given.far_hop


def page(recipe: str | Path) -> str:
    """Everything, as Markdown."""
    every = cases(recipe)
    shape = shape_of(every[0].config, _vocabulary(every[0].config))
    rows = [row(case, step(case, shape), memory(case)) for case in every]
    return "\n".join([describe(shape), "", *_head(), *rows, "", *_assumed(Assumptions())])


def write(path: str | Path, recipe: str | Path) -> None:
    """Puts it between the markers of a page. Raises UserError where they are not there once each."""
    check_between(path, BEGIN, END)
    write_between(path, page(recipe), BEGIN, END)


def describe(shape: Shape) -> str:
    return (
        f"The model: {shape.parameters / 1e9:.2f} B parameters in {shape.layers} layers ({shape.maps / 1e9:.2f} B in "
        f"linear maps of layers, {shape.layer_rest / 1e6:.1f} M in the rest of them, {shape.root / 1e6:.0f} M in the "
        f"embedding), {shape.flops / 1e9:.1f} GFLOP a token of training; {shape.states:,} numbers of state for a "
        f"sequence and {shape.windows:,} in the windows of its convolutions. bf16 products; weights, gradients, AdamW "
        f"and states in fp32. {TOKENS / 1e9:.0f} B tokens."
    )


def _head() -> Iterator[str]:
    head = (
        "GPUs", "how", "tokens a step", "forwards of a GPU", "sent by a GPU: weights", "gradients", "states",
        "time of a step: compute", "weights", "gradients", "states", "not hidden", "tokens/s", "the run", "memory",
    )  # fmt: skip
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"


def row(case: Case, one: Step, size: float) -> str:
    """Of the table. size: bytes of a GPU."""
    sent = one.sent.gather, one.sent.scatter + one.sent.reduce, one.sent.states
    times = one.compute, one.weights, one.gradients, one.states
    cells = [f"{case.gpus:,}", case.name, f"{one.tokens / 2**20:g} Mi", str(one.forwards)]
    cells += [*map(_bytes, sent), *map(_seconds, times), f"{one.shown / one.seconds:.0%}"]
    cells += [f"{one.tokens_per_second / 1e6:.2f} M", _hours(one.run_seconds), f"{size / 2**30:.0f} GiB"]
    return f"| {' | '.join(cells)} |"


def _assumed(given: Assumptions) -> Iterator[str]:
    yield f"Assumed, and not measured: an MFU of {given.mfu:g} of {given.peak / 1e12:,.0f} TFLOP/s (H100 SXM, bf16);"
    yield (
        f"{given.nvlink / 1e9:,.0f} GB/s out of a GPU inside a machine of {given.node} (NVLink 4) and "
        f"{given.network / 1e9:,.0f} GB/s to other machines (a 400 Gb/s InfiniBand card for each GPU), of which "
        f"collectives reach {given.reached:g};"
    )
    yield (
        f"a latency of {given.hop * 1e6:g} µs from GPU to GPU, {given.far_hop * 1e6:g} µs between machines, and "
        f"{given.start * 1e6:g} µs for a collective to begin where nothing hides it."
    )


def _bytes(size: float) -> str:
    if not size:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _seconds(time: float) -> str:
    if not time:
        return "–"
    return f"{time:.2f} s" if time >= 1 else f"{time * 1e3:,.0f} ms"
