"""A decode step of one recurrent layer in a single call of compiled code.

With one token in a row each operation is so small that PyTorch's way to it takes longer than it does itself. So where
the package has kernels, the layer's operations are recorded and then run at once. That is what the layer's own modules
would do: where one of them was replaced or watched (an adapter, a quantized map, a hook), and where there is padding, a
gradient or a past to keep, the layer runs as it stands.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .cache_hybridlm import HybridRecurrentLayer
from .cell_hybridlm import Cell, Otherwise, State
from .fused_hybridlm import RMSNorm
from .seam_hybridlm import decode

_linear = nn.Linear.forward

Value = int
"""Of a row each: numbers in the storage dtype, somewhere in memory."""


class DecodeStep:
    """What the parts of a layer record their step in; `ops` has the operations."""

    def __init__(self, ops: Any, dtype: torch.dtype):
        self.ops, self.dtype = ops, dtype

    def linear(self, x: Value, module: nn.Module) -> Value:
        """What a linear map gives."""
        return self.ops.product(x, *self.map(module))

    def map(self, module: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a linear map."""
        self.plain(module, nn.Linear)
        held = module._parameters  # attributes of a module are slow
        if "bias" not in held:
            raise Otherwise
        weight, bias = self.own(held.get("weight")), held["bias"]
        if weight.shape != (module.out_features, module.in_features):  # cut by hand: its neighbours are not told
            raise Otherwise
        return weight, None if bias is None else self.own(bias)

    def norm(self, x: Value, module: Any) -> Value:
        """What an RMSNorm gives."""
        self.plain(module, RMSNorm)
        if module.eps is None:
            raise Otherwise
        return self.ops.norm(x, self.own(module.weight), module.eps)

    def own(self, weight: Tensor | None) -> Tensor:
        """A weight that the kernels can read."""
        if type(weight) is not nn.Parameter or weight.dtype is not self.dtype:
            raise Otherwise
        if weight.layout is not torch.strided or not (weight.is_cpu and weight.is_contiguous()):
            raise Otherwise
        return weight

    def plain(self, module: nn.Module, kind: type) -> None:
        """Raises Otherwise where a module is of another class, or does more than its class says when it is called."""
        if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
            raise Otherwise
        if "forward" in module.__dict__:
            raise Otherwise

    def cell(self, cell: Cell, v: Value, state: State) -> Value:
        """What a cell emits. Its very class must say how: one derived from it may compute something else."""
        kind = type(cell)
        if "record" not in kind.__dict__:
            raise Otherwise
        self.plain(cell, kind)
        return cell.record(self, v, state)


def decode_step(
    layer: Any, x: Tensor, mask: Tensor | None, reset: Tensor | None, cache: HybridRecurrentLayer | None
) -> Tensor | None:
    """What the layer gives for x (B, 1, D), in new memory, its cache moved on; None where its modules must run."""
    if decode is None or cache is None or x.shape[1] != 1 or mask is not None or reset is not None:
        return None
    if nn.Linear.forward is not _linear:  # a library watches or replaces every linear map
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not cache.in_place(x.dtype):
        return None
    program = decode.begin(x)
    if program is None:
        return None
    y = torch.empty_like(x)
    try:
        layer.record(DecodeStep(program, x.dtype), x.data_ptr(), y, cache)
    except Otherwise:
        return None
    program.run()
    cache.count(1)
    return y
