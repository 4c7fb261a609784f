"""From tensors to a kernel's arguments, for the three scans."""

from contextlib import nullcontext

import torch
from torch import Tensor

from hybridlm.ops.triton.plan import Plan


def recurrence_dtype(x: Tensor) -> torch.dtype:
    """fp64 where x is, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def readable(x: Tensor) -> Tensor:
    """x (B, T, N) as it is where its channels lie side by side, else a copy in which they do."""
    return x if x.stride(2) == 1 else x.contiguous()


def whole(x: Tensor | None) -> Tensor | None:
    """A small tensor, or none, contiguous; bool as the bytes that it is made of."""
    if x is None:
        return None
    return x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of every tensor (B, T, N) the strides of rows and of steps."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


def summaries(x: Tensor, plan: Plan, reset: Tensor | None, planes: int) -> tuple[Tensor | None, ...]:
    """Room for `planes` numbers a chunk and channel and, where documents can begin, a byte a chunk; nothing where time
    is in one piece."""
    if plan.chunks == 1:
        return (None,) * (planes + 1)
    room = torch.empty(planes, x.shape[0], plan.chunks, x.shape[2], dtype=recurrence_dtype(x), device=x.device)
    cleared = None if reset is None else torch.empty(x.shape[0], plan.chunks, dtype=torch.uint8, device=x.device)
    return (*room.unbind(0), cleared)


def launch(kernel, x: Tensor, plan: Plan, chunks: int, *arguments) -> None:
    """Run `kernel` over `chunks` chunks of x (B, T, N); sizes and tile go in behind `arguments`."""
    from hybridlm.ops.triton.language import tl

    rows, _, width = x.shape
    programs = rows * chunks * -(-width // plan.block)
    if programs == 0:
        return
    state = tl.float64 if x.dtype == torch.float64 else tl.float32
    here = nullcontext() if x.device.type == "cpu" else torch.get_device_module(x.device).device(x.device)
    with here:
        kernel[(programs,)](
            *arguments, STATE=state, BLOCK=plan.block, COUNT=plan.count, num_warps=plan.warps, enable_fp_fusion=True
        )
