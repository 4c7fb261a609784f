"""Fast scans behind the model's seam, and the loops that define what is right.

    linear_scan, lru_scan, memory_scan      the operations; `path=` forces an implementation
    explain(device, dtype)                  which implementation runs there, and why
    using(path)                             forces one for a block of code

What they mean stands in `hybridlm.model.scan_hybridlm`, whose seam loads this package: so it is asked for them late.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridlm.ops.dispatch import PATHS, explain, using

if TYPE_CHECKING:
    from hybridlm.model.scan_hybridlm import linear_scan, lru_scan, memory_scan

__all__ = ["PATHS", "explain", "linear_scan", "lru_scan", "memory_scan", "using"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("linear_scan", "lru_scan", "memory_scan"):
        return getattr(import_module("hybridlm.model.scan_hybridlm"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
