"""The scans under test: their inputs, the ways to compute them, and the bytes that no way can do without.

Elements counted for each (b, t, n), of the size that they are stored in:

    linear    forward 3: read a, b; write s           backward 5: read a, s, g; write da, db
    lru       forward 4: the planes of b and s        backward 6: read g, s; write db; lambda is a sum
    memory    forward 3: read c, beta; write s        backward 5: read c, beta, g; write dc, dbeta
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlm.bench import forms
from hybridlm.bench.timing import total_memory
from hybridlm.model.twolevel_hybridlm import recurrence_dtype
from hybridlm.ops import linear_scan, lru_scan, memory_scan

Inputs = dict[str, Tensor]
Scan = Callable[[Inputs], dict[str, Tensor]]
"""Inputs by name -> states and final states by name; what is called `states...` gets a gradient."""
Shape = tuple[int, int, int]

EPSILON, SLOPE = 0.0, 1.0
"""Of the memory units, as they are once trained: every state is 0 or +-1, and all ways must agree to the last bit."""
FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = (FORWARD, BOTH)
PURE = ("torch", "doubling", "associative", "gates + torch", "gates + doubling", "gates + associative")
"""The ways that are pure PyTorch."""


@dataclass(frozen=True)
class Operation:
    name: str
    forward: int
    backward: int
    make: Callable[[Shape, torch.dtype, torch.device], Inputs]
    scan: Callable[[str, Inputs], dict[str, Tensor]]
    """By one of the paths of `hybridlm.ops`."""
    others: dict[str, Scan]
    """Ways that are no path."""

    def bytes(self, direction: str, shape: Shape, dtype: torch.dtype) -> int:
        elements = self.forward if direction == FORWARD else self.forward + self.backward
        return elements * math.prod(shape) * dtype.itemsize

    def ways(self, paths: list[str]) -> dict[str, Scan]:
        """Every way: the paths given, then the others; those in front of a path only where it is given."""
        own: dict[str, Scan] = {path: partial(self.scan, path) for path in paths}
        compiled = {f"gates + {path}" for path in ("cpu", "triton") if path not in paths}
        return own | {name: scan for name, scan in self.others.items() if name not in compiled}


def _uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device).mul_(high - low).add_(low)


def _linear_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    a, b = _uniform(shape, 0.9, 0.999, device), torch.randn(shape, device=device)
    return {"a": a.to(dtype), "b": b.to(dtype)}


def _lru_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    radius, phase = _uniform(shape[2:], 0.9, 0.999, device), _uniform(shape[2:], 0, 2 * math.pi, device)
    wide = recurrence_dtype(torch.empty(0, dtype=dtype))
    inputs = {name: torch.randn(shape, device=device).to(dtype) for name in ("b_re", "b_im")}
    lam = {"lam_re": radius * phase.cos(), "lam_im": radius * phase.sin()}
    return inputs | {name: part.to(wide) for name, part in lam.items()}


def _memory_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """A third of the units write at a step."""
    return {"c": torch.randn(shape, device=device).to(dtype), "beta": _uniform(shape, 0.5, 1.5, device).to(dtype)}


def _real(out: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"states": out[0], "final": out[1]}


def _planar(out: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    (re, im), (final_re, final_im) = out
    return {"states_re": re, "states_im": im, "final_re": final_re, "final_im": final_im}


def _linear(path: str, x: Inputs) -> dict[str, Tensor]:
    return _real(linear_scan(x["a"], x["b"], path=path))


def _lru(path: str, x: Inputs) -> dict[str, Tensor]:
    return _planar(lru_scan((x["lam_re"], x["lam_im"]), (x["b_re"], x["b_im"]), path=path))


def _memory(path: str, x: Inputs) -> dict[str, Tensor]:
    return _real(memory_scan(x["c"], x["beta"], epsilon=EPSILON, slope=SLOPE, path=path))


def _on_linear(form: Callable[..., Any]) -> Scan:
    return lambda x: _real(form(x["a"], x["b"]))


def _on_lru(form: Callable[..., Any]) -> Scan:
    return lambda x: _planar(form((x["lam_re"], x["lam_im"]), (x["b_re"], x["b_im"])))


def _behind_gates(form: Callable[..., Any]) -> Scan:
    def scan(x: Inputs) -> dict[str, Tensor]:
        states, final = form(*forms.memory_gates(x["c"], x["beta"], EPSILON, SLOPE))
        return {"states": states.to(x["c"].dtype), "final": final}

    return scan


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "linear", 3, 5, _linear_inputs, _linear,
            {"doubling": _on_linear(forms.doubling_linear), "associative": _on_linear(forms.associative_linear)},
        ),
        Operation(
            "lru", 4, 6, _lru_inputs, _lru,
            {"doubling": _on_lru(forms.doubling_lru), "associative": _on_lru(forms.associative_lru)},
        ),
        Operation(
            "memory", 3, 5, _memory_inputs, _memory,
            {
                **{f"gates + {p}": _behind_gates(partial(linear_scan, path=p)) for p in ("torch", "cpu", "triton")},
                "gates + doubling": _behind_gates(forms.doubling_linear),
                "gates + associative": _behind_gates(forms.associative_linear),
            },
        ),
    )
}  # fmt: skip


def too_large(name: str, direction: str, shape: Shape, device: torch.device) -> str | None:
    """Why a way is not tried: autograd keeps what every pass of it made. None: it may run."""
    if not name.endswith(("doubling", "associative")):
        return None
    passes = math.ceil(math.log2(max(2, shape[1]))) if name.endswith("doubling") and direction == BOTH else 2
    needed, there = 4 * passes * 4 * math.prod(shape), total_memory(device)
    if there is not None and needed > there // 3:
        return f"it would keep about {needed / 2**30:.0f} GiB"
    return None
