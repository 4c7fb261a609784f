"""Memory of CPU tensors, kept by the process from step to step.

glibc hands large blocks back to the system as soon as they are freed. The next tensor then gets fresh pages, each of
which the system clears when it is touched first: that takes several times as long as a scan that fills them.
"""

import ctypes
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
_MOST = 2**31 - 1
_NEVER = -1
_DYNAMIC_MAXIMUM = 2**25
"""What glibc's own adaptive threshold ends at; it trims above twice as much."""
_SMALL = 2**16

_lock = threading.Lock()
_open = 0


@contextmanager
def kept_memory() -> Iterator[bool]:
    """While it is open, the process keeps what it frees, blocks above 2 GiB excepted; True where the C library lets it.

    Worth it around a training loop on a CPU, which asks for the same sizes at each step. The process is as large as its
    largest step then. Afterwards free memory goes back where glibc can give it, and its thresholds are those that its
    own adaptation ends at, whatever they were before (MALLOC_MMAP_THRESHOLD_ too).
    """
    global _open
    library = _glibc()
    with _lock:
        _open += 1
        if library is not None and _open == 1:
            if not library.mallopt(_MMAP_THRESHOLD, _MOST):  # older releases take no more than this
                library.mallopt(_MMAP_THRESHOLD, _DYNAMIC_MAXIMUM)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield library is not None
    finally:
        with _lock:
            _open -= 1
            if library is not None and _open == 0:
                library.mallopt(_MMAP_THRESHOLD, _DYNAMIC_MAXIMUM)
                library.mallopt(_TRIM_THRESHOLD, 2 * _DYNAMIC_MAXIMUM)
                library.malloc_trim(0)


@contextmanager
def returned_memory() -> Iterator[bool]:
    """The opposite, for measurements: blocks above 64 KiB go back as soon as they are freed, inside `kept_memory` too,
    so that the process holds what is in use and little more. It is slow. True where the C library lets it."""
    with kept_memory() as possible:  # those inside change nothing then
        library = _glibc()
        if library is not None:
            library.mallopt(_MMAP_THRESHOLD, _SMALL)
            library.mallopt(_TRIM_THRESHOLD, _SMALL)
        yield possible


@cache
def _glibc() -> Any:
    """The C library where it is glibc; else None."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
