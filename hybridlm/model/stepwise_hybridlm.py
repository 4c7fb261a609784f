"""A recurrence inside an exported graph, where a Python loop over time would fix its length.

`torch.export` unrolls Python loops: a scan over 7 tokens would become a graph for 7 tokens. Here the loop is an
operator of the graph itself, torch's `scan`, which becomes `Scan` in ONNX: in sequence, for any length and any step,
linear or not. Eager mode and `torch.compile` never come here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Tensors = tuple[Tensor, ...]


def exporting() -> bool:
    """Whether `torch.export` traces: recurrences must be `stepwise`, and surrogate gradients are left out."""
    return torch.compiler.is_exporting()


def stepwise(step: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any) -> tuple[Any, Any]:
    """state_t, output_t = step(state_{t-1}, input_t) from state_0 = start, for T >= 1 steps.

    States, inputs and outputs are tensors, or tuples or dicts of them: states (B, ...); inputs (B, T, ...), of which
    `step` sees (B, ...). It keeps the states' shapes and dtypes, changes nothing in place, and may read other tensors,
    such as weights. Returns the state after the last step, and the outputs of all, (B, T, ...).
    """
    first = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    if first.shape[1] == 1:  # a decode step: nothing to loop over
        state, output = step(start, tree_map(lambda x: x.squeeze(1), inputs))
        return state, tree_map(lambda x: x.unsqueeze(1), output)
    from torch._higher_order_ops.scan import scan  # a prototype in torch, which nothing but exports should depend on

    def fresh(state: Any, now: Any) -> tuple[Any, Any]:
        """The operator wants what it is given and what it returns to share no memory."""
        state, output = step(state, now)
        return state, tree_map(torch.clone, output)

    contiguous = tree_map(lambda x: x.clone(memory_format=torch.contiguous_format), start)
    return scan(fresh, contiguous, inputs, dim=1)


def linear_stepwise(decay: Tensor, drive: Tensor, start: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """s_t = decay_t s_{t-1} + drive_t: decay and drive (B, T, N) and start (B, N) in the dtype of the recurrence.

    Returns the states in `dtype`, and the final state as it is.
    """

    def step(s: Tensors, now: Tensors) -> tuple[Tensors, Tensor]:
        new = torch.addcmul(now[1], now[0], s[0])
        return (new,), new

    (final,), states = stepwise(step, (start,), (decay, drive))
    return states.to(dtype), final


def planar_stepwise(
    decay: Tensors, drive: Tensors, start: Tensors, reset: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensors, Tensors]:
    """s_t = lambda s_{t-1} + drive_t, complex as (re, im): lambda (N,), 1 at padding and 0 at a reset; drive (B, T, N).

    Returns states and final state as `linear_stepwise` does.
    """
    inputs = {"re": drive[0], "im": drive[1]}
    if mask is not None:
        padding = inputs["padding"] = ~mask.unsqueeze(2)
        inputs["re"], inputs["im"] = drive[0].masked_fill(padding, 0.0), drive[1].masked_fill(padding, 0.0)
    if reset is not None:
        inputs["reset"] = reset.unsqueeze(2)

    def step(s: Tensors, now: dict[str, Tensor]) -> tuple[Tensors, Tensors]:
        re, im = decay
        if reset is not None:
            re, im = torch.where(now["reset"], 0.0, re), torch.where(now["reset"], 0.0, im)
        if mask is not None:
            re, im = torch.where(now["padding"], 1.0, re), torch.where(now["padding"], 0.0, im)
        new_re = torch.addcmul(now["re"], re, s[0]).addcmul(im, s[1], value=-1)
        new = new_re, torch.addcmul(now["im"], re, s[1]).addcmul(im, s[0])
        return new, new

    final, (re, im) = stepwise(step, start, inputs)
    return (re.to(dtype), im.to(dtype)), final
