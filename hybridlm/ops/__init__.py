"""Fast scans behind the model's seam, and the loops that define what is right.

    linear_scan, lru_scan, memory_scan, index_scan      the operations; `path=` forces an implementation
    explain(device, dtype)                              which implementation runs there, and why
    using(path)                                         forces one for a block of code

What they mean stands in `hybridlm.model.scan_hybridlm` and `indexscan_hybridlm`, whose seam loads this package: so they
are asked for them late.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridlm.ops.dispatch import PATHS, explain, using

if TYPE_CHECKING:
    from hybridlm.model.indexscan_hybridlm import index_scan
    from hybridlm.model.scan_hybridlm import linear_scan, lru_scan, memory_scan

__all__ = ["PATHS", "explain", "index_scan", "linear_scan", "lru_scan", "memory_scan", "using"]

_SCANS = {
    **dict.fromkeys(("linear_scan", "lru_scan", "memory_scan"), "scan_hybridlm"),
    "index_scan": "indexscan_hybridlm",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _SCANS:
        return getattr(import_module(f"hybridlm.model.{_SCANS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
