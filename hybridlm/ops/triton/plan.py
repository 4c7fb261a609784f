"""How a scan is cut into programs. Fixed rules: the same shapes on the same device give the same bits, every time.

A program is one warp, and its channels fill a cache line of 128 bytes a step (two in fp64). Programs are rows x channel
blocks; where they are fewer than the device has multiprocessors, they keep too few bytes under way to fill the memory
bus, and time is split as well: one launch writes a summary of every chunk of time, the next one leads the state through
the summaries before its chunk and walks the chunk. That reads inputs twice, so it is not done without need.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = 128
"""Bytes."""
PROGRAMS_EACH = 4
"""Programs a multiprocessor gets where time is split: one for each of its schedulers."""
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


def choose(x: Tensor, count: int) -> Plan:
    """The plan of a scan over x (B, T, N) whose kernel works well with tiles of `count` steps."""
    rows, length, width = x.shape
    block = max(32, LINE // x.element_size())
    if length == 1:
        return Plan(block, 1, 1, 1)
    programs = rows * math.ceil(width / block)
    wanted = 1
    if 0 < programs < multiprocessors(x.device):
        wanted = math.ceil(PROGRAMS_EACH * multiprocessors(x.device) / programs)
    # A program reads all summaries before its own: with sqrt(T) / 2 of them that is a small part of what a scan moves.
    wanted = max(1, min(wanted, math.isqrt(length) // 2, length // (SHORTEST * count)))
    steps = math.ceil(math.ceil(length / wanted) / count) * count
    return Plan(block, count, math.ceil(length / steps), steps)


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1  # the interpreter works on one program after another
