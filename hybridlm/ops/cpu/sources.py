"""What the C kernels are built from, and into. `setup.py` reads it too: it imports the standard library alone."""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (
    "scans.c", "index.c", "fused.c", "decode.c", "parallel.c",
    "scans.h", "index.h", "fused.h", "decode.h", "parallel.h", "sets.h", "each_set.h", "each_dtype.h", "elementary.h",
    "scans_kernels.h", "scans_table.h", "index_kernels.h", "index_table.h", "fused_kernels.h", "fused_table.h",
    "decode_kernels.h", "decode_table.h",
)  # fmt: skip
LIBRARY = "scans.shared"  # with ".so" at its end, Python would take it for a module
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math")
"""NaN and signed zeros keep their meaning; only error numbers and floating-point exceptions, which nobody reads, go."""


def source_hash() -> str:
    """Stored in the library when it is built: one of other sources is not used."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]
