"""Decode steps in compiled code: what `hybridlm.model.decode_hybridlm` records a layer's step in.

They follow the path of the scans: where that is `cpu`, they run; `using("torch")` turns both off.
"""

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from hybridlm.ops.cpu.decode import Program
from hybridlm.ops.dispatch import choose, has_memory
from hybridlm.ops.selfcheck import checking, decode_disagreement

MOST_ROWS = 8
"""Beyond, torch's matrix products are faster than products with one row after another."""

_logger = logging.getLogger("hybridlm.ops")


def begin(x: Tensor) -> Program | None:
    """A program for a step on x (B, 1, D), empty; None where there are no kernels for it, under autocast, and where
    something looks on at what PyTorch does: a mode, a trace, a hook for all modules."""
    if x.device.type != "cpu" or x.shape[0] > MOST_ROWS or not x.is_contiguous() or not has_memory(x) or checking():
        return None
    if torch.is_autocast_enabled("cpu") or _has_any_global_hook() or torch._C._get_tracing_state() is not None:
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return None
    if choose(x.device, x.dtype).path != "cpu" or not _right(x.dtype):
        return None
    return Program(x.shape[0], x.dtype)


@cache
def _right(dtype: torch.dtype) -> bool:
    wrong = decode_disagreement(dtype)
    if wrong is not None:
        _logger.warning("decode steps run in plain PyTorch, which is slower: %s", wrong)
    return wrong is None
