"""How a scan is cut into programs. Fixed rules: the same shapes on the same device give the same bits, every time.

A program is one warp, and its channels fill a cache line of 128 bytes a step (two in fp64). Programs are rows x channel
blocks; where they are fewer than the device has multiprocessors, they keep too few bytes under way to fill the memory
bus, and time is split as well: one launch writes a summary of every chunk of time, the next one leads the state through
the summaries before its chunk and walks the chunk. That reads inputs twice, so it is not done without need.

A program waits for a whole tile before the next one goes out, so a program that has its multiprocessor almost to itself
wants long tiles; beside others, short ones do, and compile in a fraction of the time.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = 128
"""Bytes."""
PROGRAMS_EACH = 8
"""Programs a multiprocessor gets where time is split: two for each of its schedulers."""
SHORTEST = 4
"""Tiles of a chunk, at least."""


@dataclass(frozen=True)
class Plan:
    block: int
    """Channels of a program."""
    count: int
    """Steps of a tile."""
    chunks: int
    """Parts of time."""
    steps: int
    """Steps of a part; fewer in the last."""
    warps: int = 1
    """Of a program."""


def choose(x: Tensor, count: int) -> Plan:
    """The plan of a scan over x (B, T, N) whose kernel has registers for tiles of `count` steps of 4 bytes a lane."""
    rows, length, width = x.shape
    count = count // 2 if x.element_size() > 4 else count
    block = max(32, LINE // x.element_size())
    if length == 1:
        return Plan(block, 1, 1, 1)
    programs = rows * math.ceil(width / block)
    wanted = 1
    if 0 < programs < multiprocessors(x.device):
        wanted = math.ceil(PROGRAMS_EACH * multiprocessors(x.device) / programs)
    if wanted > 1 or length < SHORTEST * count:
        count //= 2
    # A program reads all summaries before its own: with sqrt(T) / 2 of them that is a small part of what a scan moves.
    wanted = max(1, min(wanted, math.isqrt(length) // 2, length // (SHORTEST * count)))
    steps = math.ceil(math.ceil(length / wanted) / count) * count
    return Plan(block, count, math.ceil(length / steps), steps)


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1  # the interpreter works on one program after another
