"""A model run on shapes alone: torch's fake tensors, which have a size and a dtype and no values.

What a training step would keep in memory can be seen so, without its work. Values then decide nothing, and kernels
make their outputs without filling them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_open = False
_kernels = True


@contextmanager
def shapes_alone(kernels: bool = True) -> Iterator[None]:
    """Tensors inside have no values. kernels: the fused kernels of the CPU take them, where they would run; else the
    PyTorch forms do, as on other devices."""
    global _open, _kernels
    before = _open, _kernels
    _open, _kernels = True, kernels
    try:
        yield
    finally:
        _open, _kernels = before


def without_values() -> bool:
    """Whether tensors are shapes alone."""
    return _open


def without_kernels() -> bool:
    """Whether they stand for tensors of a device that the fused kernels do not serve."""
    return _open and not _kernels
