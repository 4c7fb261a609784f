"""Generation against position: time of a token, bytes of state and memory of the process, up to a million tokens.

A position is a number of tokens in the cache. At each one that is asked for:

    state       bytes of the cache's tensors
    step        one call of the model with its cache and the likeliest token, as a loop of one's own makes it
    generate    the same token by token inside `generate`, with what transformers does around a step
    resident    what the process holds behind these steps, and the most that it held in them, and in `generate`

The steps are single ones. What lies before them is read many tokens at a time, which leaves the same state and is
faster. Where the cache is nothing but keys and values of every token and reading takes long, random numbers take their
place: neither time nor memory depends on their values.

Every model is a process of its own, so that no figure of memory has the other's in it. They take turns, position by
position.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from hybridlm.bench import paths
from hybridlm.bench.cells import Apart, Problem
from hybridlm.bench.text import GrowingText, cache_bytes, growing_bytes
from hybridlm.bench.timing import forget_resident_peak, resident
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import load_weights, quiet_transformers, torch_device, torch_dtype

CHUNK = 1024
"""Tokens that are read in one call."""
SECONDS = 10.0
"""About what the timed steps of one way may take at a position: a slow model makes fewer, at least LEAST."""
LEAST = 3
PATIENCE = 30.0
"""Seconds of reading up to a position after which keys and values are filled up instead, where that leaves nothing
out."""
GRACE = 120.0
"""Seconds beyond the limit that a process has to end what it began, before it is ended."""


@dataclass(frozen=True)
class Options:
    """positions: ascending. steps: timed in each way. state_limit: bytes that a cache may take. seconds: of reading up
    to one position. dtype, device: as in `load_checkpoint`."""

    positions: tuple[int, ...]
    steps: int
    state_limit: int
    seconds: float
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Subject:
    """A model that is measured. source: a checkpoint, or the configuration of a model with random weights. most: what a
    position may not pass, where the model has a table of them. field: what an error calls the checkpoint."""

    name: str
    source: str | PreTrainedConfig
    most: int | None = None
    field: str = "checkpoint"

    def __str__(self) -> str:
        return f"{self.field} {self.source}" if isinstance(self.source, str) else self.name


def tokens_of(steps: int) -> int:
    """Tokens that the steps at a position write, those that are not timed too."""
    return 2 * (steps + 1)


class OutOfReach(Exception):
    """Why a position has no figures."""


@dataclass(frozen=True)
class _Size:
    """Bytes of the state behind so many tokens, and of the part of it that grows with the text."""

    position: int
    state: int
    growing: int

    @classmethod
    def of(cls, text: GrowingText) -> _Size:
        return cls(text.position, cache_bytes(text.cache, text.model), growing_bytes(text.cache))


class PositionCell:
    """A model that goes from position to position, in a process of its own."""

    def __init__(self, subject: Subject, options: Options):
        self.subject, self.options = subject, options

    @torch.inference_mode()
    def prepare(self) -> dict[str, Any]:
        """Loads the model and tries it. Facts; or the words of a UserError, as `refused`."""
        before = resident()["resident_bytes"]
        self.device = torch_device(self.options.device)
        self.ahead = list(self.options.positions)
        self.stopped: str | None = None
        self.filled = 0
        try:
            with quiet_transformers():
                self.model = _load(self.subject, self.options.dtype).to(self.device).eval()
                # Greedy, and no end symbol: so many tokens as are asked for.
                self.model.generation_config = GenerationConfig()
                self._try()
        except UserError as error:
            return {"refused": str(error)}
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "resident_before_bytes": before,
            **paths.facts(self.model),
        }

    def _try(self) -> None:
        """What is compiled or imported at a first step comes now, and how much the state grows by a token is seen."""
        torch.manual_seed(0)
        text = GrowingText(self.model)
        sizes = []
        for _ in range(2):
            text.read(8, 8)
            sizes.append(_Size.of(text))
        if sizes[-1].state == 0:
            raise UserError(f"{self.subject}: {type(self.model).__name__} keeps nothing in its cache. {NO_CACHE}")
        text.step()
        text.generate_times(1)
        self.seen = sizes
        self.text = GrowingText(self.model)

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """The row of the next position: figures, or a problem."""
        position = self.ahead.pop(0)
        row: dict[str, Any] = {"model": self.subject.name, "position": position}
        try:
            with quiet_transformers():
                self._check(position)
                self._advance(position)
                return row | self._figures()
        except OutOfReach as problem:
            return row | {"problem": str(problem), "estimated_state_bytes": self._estimate(position)}
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            self.stopped = f"the memory did not suffice at {position:,} tokens"
            return row | {"problem": self.stopped, "estimated_state_bytes": self._estimate(position)}

    def _check(self, position: int) -> None:
        most = self.subject.most
        if most is not None and position + tokens_of(self.options.steps) > most:
            raise OutOfReach(f"it is made for at most {most:,} positions")
        need = self._estimate(position)
        if need > self.options.state_limit:
            raise OutOfReach(f"does not fit: needs about {need / 2**30:.3g} GiB of state")
        if self.stopped is not None:
            raise OutOfReach(f"not measured: {self.stopped}")

    def _estimate(self, position: int) -> int:
        """Bytes of the state there, by how it grew last."""
        before, now = self.seen[-2:]
        a_token = (now.growing - before.growing) / (now.position - before.position)
        return round(now.state + a_token * (position - now.position))

    def _advance(self, position: int) -> None:
        """Reads up to the position, or fills up."""
        text, patience = self.text, PATIENCE if self.text.grows_alone else self.options.seconds
        until = time.perf_counter() + min(patience, self.options.seconds)
        while text.position < position:
            left = position - text.position
            if text.position and (self.filled or time.perf_counter() > until):
                if not text.grows_alone:
                    words = f"reading to {position:,} tokens took over {self.options.seconds:g} s"
                    self.stopped = f"{words} and had come to {text.position:,}"
                    raise OutOfReach(self.stopped)
                text.fill(left)
                self.filled += left
            else:
                text.read(min(CHUNK, left), CHUNK)

    def _figures(self) -> dict[str, Any]:
        size, filled = _Size.of(self.text), self.filled
        self.seen.append(size)
        self._forget_peaks()
        steps = self._step_times()
        memory = self._memory()
        count = max(LEAST, min(len(steps), int(SECONDS / statistics.median(steps))))
        self._forget_peaks()
        generated = self.text.generate_times(count)
        memory |= {f"generate_{name}": size for name, size in self._memory().items() if name.startswith("peak")}
        figures = {"state_bytes": size.state, "tokens_read": size.position - filled, "tokens_filled": filled}
        return figures | _summary("step", steps) | _summary("generate", generated) | memory

    def _forget_peaks(self) -> None:
        forget_resident_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _memory(self) -> dict[str, int | None]:
        """Bytes in use and their peak: of the process, and on a CUDA device what torch allocated there."""
        memory = resident()
        if self.device.type == "cuda":
            memory["device_bytes"] = torch.cuda.memory_allocated(self.device)
            memory["peak_device_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return memory

    def _step_times(self) -> list[float]:
        """Seconds of each step behind a first one, which is not timed."""
        times: list[float] = []
        self.text.step()
        while len(times) < self.options.steps and (len(times) < LEAST or sum(times) < SECONDS):
            begun = time.perf_counter()
            self.text.step()
            self.text.last.cpu()  # on a GPU it waits
            times.append(time.perf_counter() - begun)
        return times


NO_CACHE = "Give a causal language model that generates with a cache."


def _load(subject: Subject, dtype: str) -> Any:
    kind, source = torch_dtype(dtype), subject.source
    if isinstance(source, str):
        return load_weights(source, source, AutoModelForCausalLM, dtype=kind, field=subject.field)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(source, dtype=source.dtype if kind == "auto" else kind)


def _summary(way: str, times: Sequence[float]) -> dict[str, Any]:
    """Median, 90th percentile and number of times in seconds."""
    ninth = statistics.quantiles(times, n=10, method="inclusive")[-1]
    return {f"{way}_seconds": statistics.median(times), f"{way}_seconds_90": ninth, f"{way}_tokens": len(times)}


def _out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "allocate memory" in str(error)  # what torch says of a CPU's


def measure(subjects: Sequence[Subject], options: Options, threads: int) -> Iterator[dict[str, Any]]:
    """First the facts of every model, {"model", ...}, then a row for every position and model, as it is measured.

    Raises UserError where a model cannot be loaded or has no cache. Closing the iterator ends the processes.
    """
    with ExitStack() as closing:
        names = [subject.name for subject in subjects]
        cells = {subject.name: Apart(PositionCell(subject, options), threads, "system") for subject in subjects}
        closing.callback(lambda: [cell.close() for cell in cells.values()])
        for name, cell in cells.items():
            yield {"model": name, "facts": _prepared(name, cell, options)}
        gone: dict[str, str] = {}
        for position in options.positions:
            for name in names:
                if name in gone:
                    yield {"model": name, "position": position, "problem": f"not measured: {gone[name]}"}
                    continue
                try:
                    yield cells[name].call("measure", options.seconds + GRACE)
                except Problem as problem:
                    cells.pop(name).close()
                    gone[name] = f"at {position:,} tokens: {problem}"
                    yield {"model": name, "position": position, "problem": str(problem)}


def _prepared(name: str, cell: Apart, options: Options) -> dict[str, Any]:
    try:
        cell.wait()
        facts = cell.call("prepare", options.seconds + GRACE)
    except Problem as problem:
        raise UserError(f"{name}: the model cannot be measured ({problem}).") from None
    if "refused" in facts:
        raise UserError(facts["refused"])
    return facts
