"""Time and memory: what is compared takes turns, round after round.

On a CUDA device a time lies between two events in the stream that the calls run in; elsewhere it is the wall clock's.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from hybridlm.allocator import kept_memory
from hybridlm.errors import UserError

ENOUGH = 0.02
"""Seconds that one timing lasts at least, by calling again and again what takes less."""

Call = Callable[[], Any]

ALLOCATORS = {"kept": kept_memory, "system": nullcontext}
"""What becomes of freed memory on a CPU: the process keeps it, as in `hybridlm pretrain`, or the C library decides."""


def check_device(name: str) -> torch.device:
    """cpu or cuda, where it can be used. Raises UserError."""
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name!r}: must be cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': torch sees no CUDA device here. Take cpu.")
    return torch.device(name)


def check_counts(**values: int) -> None:
    """Raises UserError for the first that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1.")


def check_each(name: str, values: Iterable[int]) -> list[int]:
    """The values, each once. Raises UserError for the first that is below 1."""
    found = list(dict.fromkeys(values))
    for value in found:
        check_counts(**{name: value})
    return found


def unknown_memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line that says why the table has question marks, where it has."""
    if not any(row.get("memory_bytes", 0) is None for row in rows):
        return []
    return ["MiB ?: known only where every model has a process of its own; with --quick all share one"]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Call, device: torch.device, times: int = 1) -> float:
    """Seconds of one call, `times` being made one after another."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronize(device)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / times
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def interleaved(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int,
    limit: float = math.inf,
    enough: float = ENOUGH,
    always: Collection[str] = (),
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Rounds begin with another call every time.

    Every call runs twice before: the first run may compile, the second says how often a timing repeats it. A call whose
    second run takes more than `limit` seconds gets an empty list, unless its name is in `always`.
    """
    times: dict[str, int] = {}
    for name, call in calls.items():
        call()
        once = seconds_of(call, device)
        if once <= limit or name in always:
            times[name] = max(1, min(1000, math.ceil(enough / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(times)
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(calls[name], device, times[name]))
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over the rounds of over / under."""
    return statistics.median(x / y for x, y in zip(over, under, strict=True))


def cache_size(device: torch.device) -> int | None:
    """Bytes of the largest cache of the device; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    units = {"K": 2**10, "M": 2**20}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KM")) * units.get(text[-1], 1))
    return max(sizes, default=None)


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes of memory of the device that are not in use; on a CPU what Linux takes for available, elsewhere None."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return _kibibytes(lines, "MemAvailable")


class Memory:
    """The most memory in use from `begin` on: on a CUDA device what torch allocated there, else what the process holds.

    `peak` is above what was in use when this was made: in a process of its own, that is Python and its libraries.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.before = self._now()

    def begin(self) -> None:
        """Forgets the peaks before, where the system lets it; elsewhere they count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            forget_resident_peak()

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        most = _status("VmHWM")
        if most is None:
            unit = 1 if sys.platform == "darwin" else 1024
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return max(0, most - self.before)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        resident = _status("VmRSS")
        return 0 if resident is None else resident


def forget_resident_peak() -> None:
    """The most that this process held counts from here on, where the system lets it."""
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident() -> dict[str, int | None]:
    """Bytes of memory that this process holds, and the most since `forget_resident_peak`; None where no Linux tells."""
    return {"resident_bytes": _status("VmRSS"), "peak_resident_bytes": _status("VmHWM")}


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return _kibibytes(lines, field)


def _kibibytes(lines: Sequence[str], field: str) -> int | None:
    """Bytes of a field of a file in /proc whose lines are "Field:  12 kB"."""
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
