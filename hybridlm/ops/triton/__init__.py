"""The scans as Triton kernels, for CUDA devices. Triton is imported at the first call, never before."""

from importlib import import_module

import torch

from hybridlm.ops.errors import Unavailable


def words() -> str:
    """What would run: Triton's version and the device. Raises Unavailable where it cannot."""
    try:
        version = import_module("triton").__version__
    except ImportError:
        raise Unavailable("Triton is not installed; pip install '.[kernels]' in the clone brings it") from None
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    return f"kernels of Triton {version} on {torch.cuda.get_device_name()}"
