"""The compiled kernels: found, checked for their age, called through ctypes.

The library is built from `scans.c` when the package is installed where a C compiler exists. It knows nothing of torch,
so a new torch does not break it. Its threads are those of torch's own OpenMP pool.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hybridlm.ops.cpu.sources import FOLDER, LIBRARY, source_hash
from hybridlm.ops.errors import Unavailable

OPERATIONS = ("linear_forward", "linear_backward", "lru_forward", "lru_backward", "memory_forward", "memory_backward")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SETS = ("plain", "avx2", "avx512")
_FAILED = {1: "it was not built for this dtype or this processor", 2: "no memory"}
ENOUGH = 16384
"""Elements that are worth a thread of their own."""


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("step", ctypes.c_int64)]


class _Job(ctypes.Structure):
    """`Job` of scans.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "steps", "width")),
        ("inputs", _View * 4),
        ("outputs", _View * 2),
        *((name, ctypes.c_void_p * 2) for name in ("initial", "channel", "arriving", "leaving", "summed")),
        *((name, ctypes.c_void_p) for name in ("reset", "mask")),
        *((name, ctypes.c_double) for name in ("epsilon", "slope")),
        *((name, ctypes.c_int32) for name in ("operation", "dtype", "threads", "chunks")),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded library; best: the widest instruction set of this processor, an index of SETS."""

    code: ctypes.CDLL
    best: int

    def words(self) -> str:
        return f"compiled C, {SETS[self.best]}, {'torch' if self.code.hybridlm_shares_threads() else 'own'} threads"


@cache
def library() -> Library:
    """Raises Unavailable."""
    path = FOLDER / LIBRARY
    if not path.exists():
        raise Unavailable(
            "the C kernels were not built; install the package again where a C compiler (gcc or clang) is found"
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the C kernels do not load: {error}") from None
    loaded.hybridlm_source_hash.restype = ctypes.c_char_p
    if loaded.hybridlm_source_hash().decode() != source_hash():
        raise Unavailable("the C kernels were built from other sources; install the package again")
    best = max(i for i in range(len(SETS)) if loaded.hybridlm_supports(i))
    return Library(loaded, best)


def scan(
    operation: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    arriving: tuple[Tensor | None, ...],
    leaving: tuple[Tensor, ...],
    *,
    initial: tuple[Tensor | None, ...] = (),
    channel: tuple[Tensor | None, ...] = (),
    summed: tuple[Tensor, ...] = (),
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    epsilon: float = 0.0,
    slope: float = 1.0,
    isa: str | None = None,
    chunks: int = 0,
) -> None:
    """Runs one kernel and fills `outputs`, `leaving` and `summed`; what they mean for it stands in kernels.h.

    inputs, outputs: (B, T, N) of one storage dtype, any strides. arriving, leaving, initial: (B, N), what the scan
    starts from, what it ends at, s_0; channel, summed: (N,); all of these contiguous, in the dtype of the recurrence.
    reset, mask: (B, T) bool. isa, chunks: force an instruction set (of SETS) and a number of time chunks.
    """
    rows, steps, width = inputs[0].shape
    inputs = tuple(x if x.stride(2) == 1 or width == 1 else x.contiguous() for x in inputs)
    reset, mask = (None if flags is None else flags.contiguous() for flags in (reset, mask))
    job = _Job(rows=rows, steps=steps, width=width, epsilon=epsilon, slope=slope, chunks=chunks)
    job.operation, job.dtype = OPERATIONS.index(operation), DTYPES.index(inputs[0].dtype)
    job.threads = max(1, min(torch.get_num_threads(), rows * steps * width // ENOUGH))
    for views, tensors in ((job.inputs, inputs), (job.outputs, outputs)):
        for view, x in zip(views, tensors, strict=False):
            view.data, view.row, view.step = x.data_ptr(), x.stride(0), x.stride(1)
    for pointers, tensors in (
        (job.arriving, arriving),
        (job.leaving, leaving),
        (job.initial, initial),
        (job.channel, channel),
        (job.summed, summed),
    ):
        for k, x in enumerate(tensors):
            pointers[k] = None if x is None else x.data_ptr()
    job.reset = None if reset is None else reset.data_ptr()
    job.mask = None if mask is None else mask.data_ptr()
    run(library().code.hybridlm_scan, job, operation, inputs[0].dtype, isa)


def run(function: Any, job: ctypes.Structure, operation: str, dtype: torch.dtype, isa: str | None) -> None:
    """Calls the library; isa: a set of SETS, None: the widest that the processor has."""
    isa = SETS[library().best] if isa is None else isa
    failed = function(ctypes.byref(job), SETS.index(isa))
    if failed:
        raise RuntimeError(f"the C kernel {operation} cannot run here: {_FAILED[failed]} ({dtype}, {isa})")
