"""A recurrence written step by step into an exported graph, where a Python loop over time would fix its length.

`torch.export` unrolls Python loops: a scan of 7 tokens would become a graph of 7 tokens. Here the loop itself is an
operator of the graph: torch's `scan`, which becomes `Scan` in ONNX. It runs in sequence, for any length and any step,
linear or not. In eager mode and under `torch.compile` the cells keep their own loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def exporting() -> bool:
    """Whether `torch.export` is tracing: where a recurrence must be `stepwise`, and nothing needs a gradient."""
    return torch.compiler.is_exporting()


def stepwise(step: Callable[[Tensors, Tensors], Tensors], start: Tensors, inputs: Tensors) -> Tensors:
    """state_t = step(state_{t-1}, inputs_t) from state_0 = start, for T >= 1 steps.

    start: (B, ...) each; inputs: (B, T, ...) each; `step` gets tuples of (B, ...), and may use other tensors, such as
    weights. It returns states of the same shapes and dtypes, written to new memory, and changes nothing in place.
    Returns the states after every step, (B, T, ...) each.
    """
    if inputs[0].shape[1] == 1:  # a decode step: nothing to loop over
        return tuple(state.unsqueeze(1) for state in step(start, tuple(x.squeeze(1) for x in inputs)))

    from torch._higher_order_ops.scan import scan  # a prototype of torch: eager mode does not depend on it

    def body(state: list[Tensor], here: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        new = step(tuple(state), tuple(here))
        return list(new), [x.clone() for x in new]  # the operator wants outputs that share no memory

    _, states = scan(body, [x.clone(memory_format=torch.contiguous_format) for x in start], list(inputs), dim=1)
    return tuple(states)


def linear_stepwise(decay: Tensor, drive: Tensor, start: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """s_t = decay_t s_{t-1} + drive_t: (B, T, N) in the dtype of the recurrence, start (B, N).

    Returns the states in `dtype`, and the final state as it is.
    """
    (states,) = stepwise(lambda s, now: (torch.addcmul(now[1], now[0], s[0]),), (start,), (decay, drive))
    return states.to(dtype), states[:, -1]


def planar_stepwise(
    decay: Tensors, drive: Tensors, start: Tensors, reset: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """s_t = lambda s_{t-1} + drive_t, complex as (re, im): lambda (N,), 1 at padding and 0 at a reset; drive (B, T, N).

    Returns states and final state as `linear_stepwise` does.
    """
    flags = []
    if mask is not None:
        padding = ~mask.unsqueeze(2)
        drive = tuple(part.masked_fill(padding, 0.0) for part in drive)
        flags.append(padding)
    if reset is not None:
        flags.append(reset.unsqueeze(2))

    def step(state: Tensors, now: Tensors) -> Tensors:
        re, im = decay
        if reset is not None:
            re, im = torch.where(now[-1], 0.0, re), torch.where(now[-1], 0.0, im)
        if mask is not None:
            re, im = torch.where(now[2], 1.0, re), torch.where(now[2], 0.0, im)
        new_re = torch.addcmul(now[0], re, state[0]).addcmul(im, state[1], value=-1)
        return new_re, torch.addcmul(now[1], re, state[1]).addcmul(im, state[0])

    re, im = stepwise(step, start, (*drive, *flags))
    return (re.to(dtype), im.to(dtype)), (re[:, -1], im[:, -1])
