"""The scan of finite-state heads and its surrogate gradient on the CPU, in C: no autograd, inputs that were checked.

Arguments and results as of `hybridlm.model.indexscan_hybridlm`. The walk takes one step after another, heads and rows
side by side; what is summed over rows is summed in double, in one order, whatever the threads.
"""

import struct

import torch
from torch import Tensor

from hybridlm.ops.cpu.library import DTYPES, ENOUGH, address, library, run

OPERATIONS = {"index_forward": 0, "index_backward": 1}
"""As index.h numbers them."""

_JOB = struct.Struct("5q 15q d 3i 4x")
"""`IndexJob` of index.h."""


def index_forward(
    theta: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
    keep: bool,
    **forced,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, states, and with `keep` p and maps; these are empty without it: only the rows that are visited are read."""
    wide, shape = _wide(theta.dtype), theta.shape[:4]
    made = {"h": torch.empty(*shape[:3], values.shape[2], dtype=wide)}
    made["visited"] = torch.empty(shape[:3], dtype=torch.uint8)
    kept = shape if keep else (0,)
    made["p"], made["maps"] = torch.empty(kept, dtype=wide), torch.empty(kept, dtype=torch.uint8)
    given = {"theta": _whole(theta), "initial": _whole(initial_state), "reset": _whole(reset), "mask": _whole(mask)}
    given |= {name: _whole(x, wide) for name, x in (("bias", bias), ("noise", noise), ("values", values))}
    sizes = (*shape, values.shape[2])
    _call("index_forward", theta.dtype, sizes, given | (made if keep else _without_kept(made)), temperature, **forced)
    return made["h"], made["visited"], made["p"], made["maps"]


def index_backward(
    grad: Tensor,
    p: Tensor,
    maps: Tensor,
    states: Tensor,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
    **forced,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of theta, in `dtype`, and of bias and values, in that of the recurrence."""
    wide, n = _wide(dtype), p.shape[3]
    made = {"grad_theta": torch.empty(*p.shape, n, dtype=dtype), "grad_bias": torch.empty(p.shape[2], n, n, dtype=wide)}
    made["grad_values"] = torch.empty(values.shape, dtype=wide)
    given = {"p": _whole(p), "maps": _whole(maps), "visited": _whole(states), "initial": _whole(initial_state)}
    given |= {"grad": _whole(grad, wide), "values": _whole(values.transpose(1, 2), wide)}
    given |= {"reset": _whole(reset), "mask": _whole(mask)}
    _call("index_backward", dtype, (*p.shape, values.shape[2]), given | made, temperature, **forced)
    return made["grad_theta"], made["grad_bias"], made["grad_values"]


_PLACES = (
    "theta", "bias", "noise", "values", "grad", "initial", "reset", "mask", "h", "visited", "p", "maps", "grad_theta",
    "grad_bias", "grad_values",
)  # fmt: skip
"""The pointers of a job in their order."""


def _call(
    operation: str,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    tensors: dict[str, Tensor | None],
    temperature: float,
    isa: str | None = None,
) -> None:
    """sizes: B, T, K, n, d. isa: a set of SETS, None: the widest that the processor has."""
    rows, steps, heads, states, _ = sizes
    threads = max(1, min(torch.get_num_threads(), rows * steps * heads * states * states // ENOUGH))
    places = [address(tensors.get(name)) for name in _PLACES]
    job = _JOB.pack(*sizes, *places, temperature, OPERATIONS[operation], DTYPES[dtype], threads)
    run(library().code.hybridlm_index, job, operation, dtype, isa)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _whole(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if x is None else x.to(dtype or x.dtype).contiguous().resolve_neg()


def _without_kept(made: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in made.items() if name in ("h", "visited")}
