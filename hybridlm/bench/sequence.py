"""One sequence of a million tokens, trained by processes that have a part of it each: memory, time, and the numbers.

The text is one document: the bytes of the two novels that come with the package, from the start again where it is
longer than they are. Its state passes through all parts, forward and backward; `bmru` is bistable. Before that, the
same at a length that one process can hold, beside one process that does: loss and gradient norm of every step.

    peak RSS   the most that the process held, libraries and all
    in use     how far that is above what it held before the model was made; freed blocks go back at once
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.allocator import returned_memory
from hybridlm.bench.timing import Memory, check_counts
from hybridlm.data.austen import austen_paths
from hybridlm.errors import UserError
from hybridlm.model.sequence_hybridlm import SequenceRanks
from hybridlm.training.session import cpu_threads

BYTES = 256
"""The vocabulary."""


@dataclass(frozen=True)
class Case:
    """What is trained."""

    length: int
    """Tokens of the sequence, T."""
    checkpointing: bool
    pattern: str = "(rglru bmru)*2"
    width: int = 64
    steps: int = 2
    lr: float = 3e-3


@contextmanager
def processes() -> Iterator[SequenceRanks | None]:
    """Inside, those that torchrun started have joined: they share the sequence. None: there is but this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cpu_threads())
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            yield None
            return
        torch.distributed.init_process_group("gloo")
        try:
            yield SequenceRanks()
        finally:
            torch.distributed.destroy_process_group()
    finally:
        torch.set_num_threads(threads)


def measure(
    length: int,
    ranks: SequenceRanks | None,
    *,
    compare: int | None = None,
    checkpointing: Sequence[bool] = (True,),
    progress: Callable[[str], None] = lambda _: None,
    **choice: Any,
) -> dict[str, Any]:
    """A row for every case, the same on all processes, each of which calls this.

    compare: a length at which one process trains too; None: none. choice: fields of `Case`. Raises UserError for what
    is out of range.
    """
    size = 1 if ranks is None else ranks.size
    for name, value in (("length", length), *([] if compare is None else [("compare", compare)])):
        if value < 2 or value % size:
            raise UserError(f"{name}={value}: must be a multiple of the {size} processes, and at least 2.")
    check_counts(**{name: choice[name] for name in ("width", "steps") if name in choice})
    asked: list[tuple[Case, SequenceRanks | None]] = []
    if compare is not None:
        asked += [(Case(compare, checkpointing[0], **choice), None)]
        asked += [] if ranks is None else [(Case(compare, checkpointing[0], **choice), ranks)]
    asked += [(Case(length, each, **choice), ranks) for each in checkpointing]
    rows = []
    for case, shared in asked:
        rows.append(_row(case, shared, ranks))
        if ranks is None or ranks.rank == 0:
            progress("\n".join(_lines(rows[-1])))
    return {"rows": rows}


def _row(case: Case, shared: SequenceRanks | None, ranks: SequenceRanks | None) -> dict[str, Any]:
    """One case, run by all processes or, where `shared` is None, by the first alone."""
    mine = train(case, shared) if shared is not None or ranks is None or ranks.rank == 0 else None
    found: list[Any] = [mine]
    if ranks is not None:
        found = [None] * ranks.size
        torch.distributed.all_gather_object(found, mine, group=ranks.group)
    found = [each for each in found if each is not None]
    numbers = {name: found[0].pop(name) for name in ("parameters", "losses", "gradient_norms")}
    for each in found[1:]:
        assert {name: each.pop(name) for name in numbers} == numbers, "the processes do not have the same weights"
    return asdict(case) | {"processes": len(found)} | numbers | {"ranks": found}


def text(length: int) -> Tensor:
    """So many tokens of the document and one more, (1, T + 1) int64."""
    novels = np.concatenate([np.frombuffer(path.read_bytes(), dtype=np.uint8) for path in austen_paths()])
    return torch.from_numpy(np.resize(novels, length + 1).astype(np.int64)).unsqueeze(0)


def train(case: Case, ranks: SequenceRanks | None) -> dict[str, Any]:
    """The steps of a case on this process's part: its tokens, memory and seconds of each step; and what all processes
    have, parameters, losses (nats per token) and gradient norms of each step."""
    memory = Memory(torch.device("cpu"))
    part = slice(0, case.length)
    if ranks is not None:
        own = case.length // ranks.size
        part = slice(ranks.rank * own, (ranks.rank + 1) * own)
    found: dict[str, Any] = {"tokens": part.stop - part.start, "seconds": [], "losses": [], "gradient_norms": []}
    with returned_memory():
        memory.begin()
        model = _model(case)
        found["parameters"] = model.num_parameters()
        model.split_sequence(ranks)
        called = model if ranks is None else DistributedDataParallel(model, process_group=ranks.group)
        optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr, fused=True)
        tokens = text(case.length)
        ids, targets = tokens[:, :-1][:, part].clone(), tokens[:, 1:][:, part].clone()
        del tokens
        for _ in range(case.steps):
            begun = time.perf_counter()
            loss = _backward(called, ids, targets, case.length, ranks)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found["seconds"].append(time.perf_counter() - begun)
            found["losses"].append(loss)
            found["gradient_norms"].append(norm.item())
        found["in_use_bytes"] = memory.peak()
        found["peak_rss_bytes"] = memory.peak() + memory.before
    return found


def _model(case: Case) -> HybridLMForCausalLM:
    torch.manual_seed(0)
    symbols = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    sizes = {"hidden_size": case.width, "vocab_size": BYTES, "num_attention_heads": max(1, case.width // 32)}
    model = HybridLMForCausalLM(HybridLMConfig(pattern=case.pattern, **sizes, **symbols)).train()  # pyright: ignore[reportArgumentType]
    if case.checkpointing:
        model.activation_checkpointing_enable()
    return model


def _backward(called: Any, ids: Tensor, targets: Tensor, length: int, ranks: SequenceRanks | None) -> float:
    """The gradients of the mean over the whole sequence, which is returned: DistributedDataParallel averages over the
    processes, each of which has the sum over its part."""
    size = 1 if ranks is None else ranks.size
    loss = called(
        input_ids=ids, shift_labels=targets, use_cache=False, keep_logits=False, num_items_in_batch=length
    ).loss
    (loss * size).backward()
    total = loss.detach().clone()
    if ranks is not None:
        torch.distributed.all_reduce(total, group=ranks.group)
    return total.item()


def table(result: dict[str, Any]) -> str:
    """Every row with its processes, and how far those that share a sequence are from one that has it alone."""
    rows = result["rows"]
    lines = [line for row in rows for line in _lines(row)]
    for alone, shared in pairwise(rows):
        if alone["processes"] == 1 < shared["processes"] and alone["length"] == shared["length"]:
            lines.append(f"{shared['processes']} processes beside one, T = {alone['length']:,}:")
            for name, words in (("losses", "loss"), ("gradient_norms", "gradient norm")):
                far = [f"{abs(a - b) / abs(a):.1e}" for a, b in zip(alone[name], shared[name], strict=True)]
                lines.append(f"  {words:<14} differs by {' '.join(far)} of itself, step by step")
    return "\n".join(lines)


def _lines(row: dict[str, Any]) -> list[str]:
    how = "with" if row["checkpointing"] else "without"
    lines = [
        f"T = {row['length']:,}, {row['processes']} process(es): {row['pattern']}, width {row['width']}, "
        f"{row['parameters']:,} parameters, {how} gradient checkpointing",
        f"  {'process':<8}{'tokens':>10}{'peak RSS, MiB':>15}{'in use, MiB':>13}{'seconds a step':>16}",
    ]
    for index, each in enumerate(row["ranks"]):
        memory = f"{each['peak_rss_bytes'] / 2**20:>15,.0f}{each['in_use_bytes'] / 2**20:>13,.0f}"
        seconds = " ".join(f"{seconds:.1f}" for seconds in each["seconds"])
        lines.append(f"  {index:<8}{each['tokens']:>10,}{memory}{seconds:>16}")
    lines.append("  loss           " + " ".join(f"{loss:.6f}" for loss in row["losses"]))
    lines.append("  gradient norm  " + " ".join(f"{norm:.6f}" for norm in row["gradient_norms"]))
    return lines
