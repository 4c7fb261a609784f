"""`jit` and `tl` for the modules that hold kernels.

Those modules decorate functions when they are imported, so the scans import them at the first call, not before. They
also have to import where Triton cannot be (macOS, Windows): there the kernels stay plain functions, which nobody calls.
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a language of its own, which only looks like Python
    jit: Any
    tl: Any
else:
    try:
        import triton.language as tl
        from triton import jit
    except ImportError:
        tl = SimpleNamespace(constexpr=object, int64=object, float64=object)  # what the kernels' signatures name

        def jit(fn=None, **_options):
            return fn if fn is not None else lambda kernel: kernel
