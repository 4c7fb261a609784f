"""How the Triton kernels are best cut, on this device: python scripts/sweep_triton.py

Kernels by themselves in bf16, over channels of a program, warps and steps of a tile, each with the best number of parts
of time. `of_copy` counts the bytes that no implementation can do without. The rules of hybridlm/ops/triton/plan.py come
from such a table; what is right is for tests/ops to say.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from torch import Tensor

from hybridlm.bench.results import check_out
from hybridlm.bench.timing import check_device, interleaved
from hybridlm.errors import UserError
from hybridlm.files import replace_file
from hybridlm.machine import machine
from hybridlm.ops.triton import linear, lru, memory, plan

SHAPES = ((8, 4096, 4096), (2, 16384, 8192), (1, 65536, 4096), (1, 1048576, 256), (1, 65536, 256), (8, 4096, 512))
BLOCKS = ((32, 1), (64, 1), (64, 2), (128, 1), (128, 2), (256, 4))
"""Channels and warps of a program."""
TILES = {"forward": (8, 16, 32), "backward": (4, 8, 16)}
FLOORS = {"linear": (3, 5), "lru": (4, 6), "memory": (3, 5)}
"""Numbers moved a step and channel, at least: forward and backward."""
EACH = (0, 4, 8, 16)
"""Programs a multiprocessor gets; 0: time in one piece."""


def kernel(operation: str, direction: str, shape: tuple[int, int, int]):
    """A call of it, on inputs of its own."""

    def normal(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*sizes, device="cuda", dtype=dtype)

    rows, _, width = shape
    x, y, grad, states = (normal(*shape) for _ in range(4))
    final = normal(rows, width, dtype=torch.float32)
    if operation == "lru":
        lam = [part.contiguous() for part in torch.view_as_real(torch.polar(final[0].sigmoid(), final[0])).unbind(-1)]
        if direction == "forward":
            return partial(lru.lru_forward, *lam, x, y, None, None, None, None)
        return partial(lru.lru_backward, x, y, final, final, *lam, grad, states, None, None, None, None)
    if operation == "linear":
        if direction == "forward":
            return partial(linear.linear_forward, x.sigmoid(), y, None, None, None)
        return partial(linear.linear_backward, grad, final, x.sigmoid(), states, None, None, None)
    if direction == "forward":
        return partial(memory.memory_forward, x, y.sigmoid(), None, 0.0, None, None, None)
    return partial(memory.memory_backward, grad, final, x, y.sigmoid(), states, None, 0.0, 1.0, None, None, None)


def cut(block: int, warps: int, tile: int, each: int, shape: tuple[int, int, int]) -> plan.Plan | None:
    """None where it is none, or the same as one that is tried too."""
    rows, length, width = shape
    programs = rows * math.ceil(width / block)
    wanted = math.ceil(each * plan.multiprocessors(torch.device("cuda")) / programs) if each else 1
    wanted = min(wanted, length // (2 * tile))
    if block > width or (each and wanted <= 1) or (not each and programs < 32 and length > 20_000):
        return None
    steps = math.ceil(math.ceil(length / wanted) / tile) * tile
    return plan.Plan(block, tile, math.ceil(length / steps), steps, warps)


def compile_one(task: tuple[str, str, tuple[int, int], int]) -> None:
    """In a process of its own; Triton keeps what it compiled."""
    operation, direction, (block, warps), tile = task
    call = kernel(operation, direction, (1, 512, 512))
    for chunks in (1, 2):
        plan.choose = lambda x, count, chunks=chunks: plan.Plan(block, tile, chunks, 512 // chunks, warps)
        call()
    torch.cuda.synchronize()


def share(row: dict) -> float:
    return row["of_copy"]


def copied(device: torch.device) -> float:
    """Bytes a second, read and written."""
    x, out = (torch.ones(2**27, device=device) for _ in range(2))
    return 8 * 2**27 / min(interleaved({"copy": lambda: out.copy_(x)}, device, rounds=5)["copy"])


def sweep(end: float, processes: int) -> tuple[float, list[dict]]:
    device = torch.device("cuda")
    tasks = [(o, d, b, t) for o in FLOORS for d, tiles in TILES.items() for b in BLOCKS for t in tiles]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, tasks))
    bandwidth, rows = copied(device), []
    for shape, operation, (i, direction) in itertools.product(SHAPES, FLOORS, enumerate(TILES)):
        call = kernel(operation, direction, shape)
        moved = FLOORS[operation][i] * math.prod(shape) * 2
        best = []
        for (block, warps), tile in itertools.product(BLOCKS, TILES[direction]):
            tried = []
            for each in EACH:
                chosen = cut(block, warps, tile, each, shape)
                if chosen is None or time.time() > end:
                    continue
                plan.choose = lambda x, count, chosen=chosen: chosen
                seconds = min(interleaved({"it": call}, device, rounds=3, enough=0.002)["it"])
                row = {"operation": operation, "direction": direction, "shape": shape, "channels": block}
                row |= {"warps": warps, "tile": tile, "parts": chosen.chunks}
                tried.append(row | {"ms": seconds * 1e3, "of_copy": moved / seconds / bandwidth})
            best += [max(tried, key=share)] if tried else []
        rows += best
        for row in sorted(best, key=share)[-3:]:
            print(*(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()), flush=True)
    return bandwidth, rows


def main() -> int:
    parser = argparse.ArgumentParser(description="How the Triton kernels are best cut, on this device.")
    parser.add_argument("--seconds", type=float, default=600, help="after which nothing more is timed (default: 600)")
    parser.add_argument("--processes", type=int, default=8, help="that compile (default: 8)")
    parser.add_argument(
        "--out", metavar="FILE.json", default="scripts/results/sweeps/triton.json", help="(default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        device, out = check_device("cuda"), check_out(options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bandwidth, rows = sweep(time.time() + options.seconds, options.processes)
    entry = {"machine": machine(device), "dtype": "bfloat16", "copy_gb_s": bandwidth / 1e9, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(entry).replace('{"operation"', '\n{"operation"') + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
