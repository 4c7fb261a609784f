"""The scans by themselves: right first, then how fast.

    GB/s     bytes that no implementation can do without (`operations`), over the time
    of copy  that over the bandwidth of a copy, timed in the same rounds; 1 is all there is where the data is past the
             cache
    x pure   time of the best pure-PyTorch form over the time

The copy is `out.copy_(x)` in fp32 between two tensors far larger than the cache; it reads and writes, and its output is
there before. A scan allocates what it returns, as it does in a model: `fresh_copy_gb_s`, of `x.clone()`, says what a
copy gets that has to do that. On a CPU that is much less where freed memory goes back to the system; in a pretraining
run, and here by default, the process keeps it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlm.bench.operations import (
    BOTH,
    DIRECTIONS,
    OPERATIONS,
    PURE,
    Inputs,
    Operation,
    Scan,
    Shape,
    too_large,
)
from hybridlm.bench.timing import ALLOCATORS, cache_size, check_counts, interleaved, ratio
from hybridlm.errors import UserError
from hybridlm.ops import PATHS
from hybridlm.ops.dispatch import choose

SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((8, 1024, 512), (2, 8192, 512), (1, 65536, 256), (64, 128, 64), (8, 4096, 512)),
    "cuda": (
        *((8, 1024, 512), (2, 8192, 512), (1, 65536, 256), (64, 128, 64), (8, 4096, 512)),
        *((8, 4096, 4096), (2, 16384, 8192), (1, 65536, 4096), (4, 131072, 1024), (1, 1048576, 256)),
    ),
}
"""(B, T, N): the first ones on every device; on a GPU also many channels, and few with a long time."""
QUICK: tuple[Shape, ...] = ((2, 64, 32), (1, 100, 48))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = 256
"""Up to this T the truth is the reference loop; beyond, the two-level path. In fp64 both."""
BLOCK = {"cpu": 2**22, "cuda": 2**26}
"""Elements for which the truth is computed at once, of whole channels."""
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
"""Of the largest number: a few roundings of the storage dtype, and of fp32 the order of the sums."""


def paths_on(device: torch.device, dtype: torch.dtype) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Paths that can be timed there; why others cannot; and what is wrong with those that were found to be wrong."""
    usable, absent, wrong = [], {}, {}
    for path in PATHS:
        if path == "reference":
            continue
        try:
            choose(device, dtype, path)
            usable.append(path)
        except ValueError as error:
            # The dispatcher tries a path on a small input first; it words what it finds as a disagreement.
            (wrong if "disagree" in str(error) else absent)[path] = str(error)
    return usable, absent, wrong


def outcome(scan: Scan, inputs: Inputs, arriving: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """What a way gives: states and final states, with `backward` the gradients of every input too ("d a")."""
    if not backward:
        with torch.no_grad():
            return scan(inputs)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = scan(leaves)
    reached = [name for name in outputs if name.startswith("states")]
    grads = torch.autograd.grad(
        [outputs[name] for name in reached],
        [*leaves.values()],
        [arriving[name] for name in reached],
        materialize_grads=True,  # zeros for what a single step does not read
    )
    return {n: x.detach() for n, x in outputs.items()} | {f"d {n}": g for n, g in zip(leaves, grads, strict=True)}


def truth(operation: Operation, inputs: Inputs, arriving: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in fp64, some channels at a time."""
    rows, steps, width = next(iter(arriving.values())).shape
    scan = partial(operation.scan, "reference" if steps <= SHORT else "torch")
    size = max(1, BLOCK[next(iter(inputs.values())).device.type] // (rows * steps))
    blocks = []
    for start in range(0, width, size):
        part = slice(start, start + size)
        block = {name: x[..., part].double() for name, x in inputs.items()}
        blocks.append(outcome(scan, block, {name: g[..., part].double() for name, g in arriving.items()}, True))
    return {name: torch.cat([block[name] for block in blocks], dim=-1) for name in blocks[0]}


def disagreement(got: dict[str, Tensor], right: dict[str, Tensor], dtype: torch.dtype, exact: bool) -> str | None:
    """What is wrong; None: nothing. exact: states must be equal to the last bit, only gradients may be rounded."""
    for name, x in got.items():
        want, x = right[name], x.double()
        if exact and not name.startswith("d "):
            if not torch.equal(x, want):
                return f"{name}: {int((x != want).sum())} of {x.numel()} values differ"
            continue
        scale = max(want.abs().max().item(), 1e-30)
        off = (x - want).abs().max().item() / scale
        if not off <= _TOLERANCE[dtype]:  # NaN too
            return f"{name} is off by {off:.1e} of its largest value"
    return None


def problem(
    call: Callable[[], dict[str, Tensor]], right: dict[str, Tensor], dtype: torch.dtype, exact: bool
) -> str | None:
    """What is wrong with a way, an error that it ends in included; None: nothing."""
    try:
        got = call()
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return disagreement(got, right, dtype, exact)


class _Copy:
    """The two copies, between tensors of 4 times the cache, or 256 MiB where that is more."""

    def __init__(self, device: torch.device, size: int | None):
        self.bytes = size or max(2**28, 4 * (cache_size(device) or 0))
        self.x, self.out = (torch.ones(self.bytes // 4, device=device) for _ in range(2))

    def calls(self) -> dict[str, Callable[[], Any]]:
        return {"copy": lambda: self.out.copy_(self.x), "fresh copy": self.x.clone}


def measure(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    *,
    rounds: int = 7,
    limit: float = 2.0,
    copy_bytes: int | None = None,
    operations: Sequence[str] = tuple(OPERATIONS),
    allocator: str = "kept",
    progress: Callable[[str], None] = lambda _: None,
    so_far: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Rows of every operation, shape, direction and way; `absent`, `skipped` and `refused` say what has none, and why.

    limit: seconds that one call may take. copy_bytes: of each tensor of the copy. allocator: of ALLOCATORS. so_far gets
    the result after every shape. What is wrong is never timed. Raises UserError for counts below 1.
    """
    check_counts(rounds=rounds)
    shapes = list(dict.fromkeys(shapes))
    for shape in shapes:
        if min(shape) < 1:
            raise UserError(f"shape={_words(shape)}: B, T and N must be at least 1.")
    if not limit > 0:
        raise UserError(f"limit={limit}: must be above 0 seconds.")
    paths, absent, wrong = paths_on(device, dtype)
    refused = [{"way": path, "why": why} for path, why in wrong.items()]
    result: dict[str, Any] = {"rows": [], "absent": absent, "skipped": [], "refused": refused}
    with ALLOCATORS[allocator]():
        copy = _Copy(device, copy_bytes)
        result["copy_bytes"], result["cache_bytes"] = copy.bytes, cache_size(device)
        for name in operations:
            operation = OPERATIONS[name]
            for shape in shapes:
                progress(f"{name} {shape}")
                torch.manual_seed(0)
                inputs = operation.make(shape, dtype, device)
                arriving = _arriving(operation, inputs, shape, dtype, device)
                right = truth(operation, inputs, arriving)
                for direction in DIRECTIONS:
                    at = {"operation": name, "direction": direction, "shape": list(shape)}
                    calls = {}
                    for way, scan, why in _tried(operation, paths, direction, shape, device):
                        call = partial(outcome, scan, inputs, arriving, direction == BOTH)
                        if why is not None:
                            result["skipped"].append({**at, "way": way, "why": why})
                        elif (why := problem(call, right, dtype, name == "memory")) is not None:
                            result["refused"].append({**at, "way": way, "why": why})
                        else:
                            calls[way] = call
                    copies = copy.calls()
                    seconds = interleaved({**copies, **calls}, device, rounds=rounds, limit=limit, always=copies)
                    slow = [way for way in calls if not seconds[way]]
                    result["skipped"] += [{**at, "way": way, "why": f"over the limit of {limit:g} s"} for way in slow]
                    moved = operation.bytes(direction, shape, dtype)
                    result["rows"] += [at | row for row in _rows(seconds, moved, copy.bytes, result["cache_bytes"])]
                so_far(result)
    return result


def _tried(
    operation: Operation, paths: list[str], direction: str, shape: Shape, device: torch.device
) -> Iterator[tuple[str, Scan, str | None]]:
    """Every way, and why it is not tried."""
    for way, scan in operation.ways(paths).items():
        yield way, scan, too_large(way, direction, shape, device)


def _arriving(
    operation: Operation, inputs: Inputs, shape: Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    small = {name: x[:1, :1] if x.ndim == 3 else x for name, x in inputs.items()}
    names = [name for name in operation.scan("reference", small) if name.startswith("states")]
    return {name: torch.randn(shape, device=device).to(dtype) for name in names}


def _rows(seconds: dict[str, list[float]], moved: int, copy_bytes: int, cache: int | None) -> Iterator[dict[str, Any]]:
    """A row for each way that was timed; moved: the bytes of the floor."""
    ways = [way for way in seconds if seconds[way] and way not in ("copy", "fresh copy")]
    pure = min((way for way in ways if way in PURE), key=lambda w: statistics.median(seconds[w]), default=None)
    bandwidth = {name: 2 * copy_bytes / statistics.median(seconds[name]) / 1e9 for name in ("copy", "fresh copy")}
    for way in ways:
        middle = statistics.median(seconds[way])
        yield {
            "way": way,
            "ms": middle * 1000,
            "ms_lowest": min(seconds[way]) * 1000,
            "gb_s": moved / middle / 1e9,
            "of_copy": ratio(seconds["copy"], seconds[way]) * moved / (2 * copy_bytes),
            "times_pure": None if pure is None else ratio(seconds[pure], seconds[way]),
            "best_pure": pure,
            "past_cache": None if cache is None else moved > cache,
            "copy_gb_s": bandwidth["copy"],
            "fresh_copy_gb_s": bandwidth["fresh copy"],
        }


def table(result: dict[str, Any]) -> str:
    """The rows as aligned text, then what has none."""
    lines = [
        f"{'scan':<7} {'shape':<16} {'direction':<18} {'way':<19} {'ms':>9} {'GB/s':>7} {'of copy':>8} "
        f"{'x pure':>7}  cache"
    ]
    cache = {None: "unknown", True: "past", False: "inside"}
    for row in result["rows"]:
        pure = "" if row["times_pure"] is None else f"{row['times_pure']:.2f}"
        lines.append(
            f"{row['operation']:<7} {_words(row['shape']):<16} {row['direction']:<18} {row['way']:<19} "
            f"{row['ms']:>9.3f} {row['gb_s']:>7.1f} {row['of_copy']:>8.2f} {pure:>7}  {cache[row['past_cache']]}"
        )
    if result["rows"]:
        copies = [statistics.median(row[name] for row in result["rows"]) for name in ("copy_gb_s", "fresh_copy_gb_s")]
        lines.append(
            f"copy: {copies[0]:.1f} GB/s, read and written, fp32, two tensors of "
            f"{result['copy_bytes'] / 2**20:.0f} MiB, the output there before; {copies[1]:.1f} GB/s "
            "with an output that is allocated, as the scans' is"
        )
    lines += [f"not here: {path}: {why}" for path, why in result["absent"].items()]
    lines += [f"not timed: {place(entry)}: {entry['why']}" for entry in result["skipped"]]
    lines += [f"WRONG, not timed: {place(entry)}: {entry['why']}" for entry in result["refused"]]
    return "\n".join(lines)


def _words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def place(entry: dict[str, Any]) -> str:
    """Which scan, shape, direction and way."""
    where = f"{entry['operation']} {_words(entry['shape'])} {entry['direction']} " if "operation" in entry else ""
    return f"{where}{entry['way']}"
