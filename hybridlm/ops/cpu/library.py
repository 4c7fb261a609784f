"""The compiled kernels: found, checked for their age, called through ctypes.

The library is built from `scans.c` when the package is installed where a C compiler exists. It knows nothing of torch,
so a new torch does not break it. Its threads are those of torch's own OpenMP pool.
"""

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hybridlm.ops.cpu.sources import FOLDER, LIBRARY, source_hash
from hybridlm.ops.errors import Unavailable

_NAMES = ("linear_forward", "linear_backward", "lru_forward", "lru_backward", "memory_forward", "memory_backward")
OPERATIONS = {name: number for number, name in enumerate(_NAMES)}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""As sets.h and scans.h number them."""
SETS = ("plain", "avx2", "avx512")
_FAILED = {
    1: "it was not built for this dtype or this processor",
    2: "no memory",
    3: "an initial state is none of its head",
}
ENOUGH = 16384
"""Elements that are worth a thread of their own."""

_JOB = struct.Struct("3q 12q 6q 10q 2q 2d 4i")
"""`Job` of scans.h. Packed at once: filling a ctypes structure field by field costs more than a decode step."""


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
    for function in (loaded.hybridlm_scan, loaded.hybridlm_index, loaded.hybridlm_fused):
        function.argtypes = [ctypes.c_char_p, ctypes.c_int]
    loaded.hybridlm_decode.argtypes = [ctypes.c_char_p, *(ctypes.c_int64,) * 2, *(ctypes.c_int,) * 3]
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
    first = inputs[0]
    rows, steps, width = first.shape
    inputs = tuple(x if x.stride(2) == 1 or width == 1 else x.contiguous() for x in map(torch.resolve_neg, inputs))
    reset, mask = (None if flags is None else flags.contiguous() for flags in (reset, mask))
    fields: list[float] = [rows, steps, width]
    for tensors, places in ((inputs, 4), (outputs, 2)):
        for x in tensors:
            fields += x.data_ptr(), x.stride(0), x.stride(1)
        fields += [0] * (3 * (places - len(tensors)))
    for tensors in (initial, channel, arriving, leaving, summed):
        fields += [address(x) for x in tensors]
        fields += [0] * (2 - len(tensors))
    fields += address(reset), address(mask), epsilon, slope
    threads = max(1, min(torch.get_num_threads(), rows * steps * width // ENOUGH))
    fields += OPERATIONS[operation], DTYPES[first.dtype], threads, chunks
    run(library().code.hybridlm_scan, _JOB.pack(*fields), operation, first.dtype, isa)


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def run(function: Any, job: bytes, operation: str, dtype: torch.dtype, isa: str | None) -> None:
    """Calls the library; isa: a set of SETS, None: the widest that the processor has."""
    failed = function(job, library().best if isa is None else SETS.index(isa))
    if failed:
        kind = f"{dtype}, {isa or SETS[library().best]}"
        raise RuntimeError(f"the C kernel {operation} cannot run here: {_FAILED[failed]} ({kind})")
