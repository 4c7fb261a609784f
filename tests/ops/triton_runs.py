"""The Triton kernels called side by side with the reference: what their tests share."""

import importlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from cases import CASES, flags

from hybridlm.ops import reference
from hybridlm.ops.triton import linear, lru, memory
from hybridlm.ops.triton.plan import Plan

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULES = [
    f"hybridlm.ops.triton.{name}"
    for name in ("tiles", "linear_kernels", "lru_kernels", "memory_kernels", "index_kernels")
]
NAMES = ("linear", "lru", "memory_0.3")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
"""Of the largest number. The last two are two roundings of the storage: the interpreter cuts bits off instead of
rounding, and gradients start from stored states."""


@contextmanager
def kernels_made(interpret):
    """Triton decides when it decorates a function whether that is compiled or interpreted: so load the modules anew."""
    from triton.runtime.interpreter import InterpretedFunction, ReduceOps

    def load():
        for name in MODULES:
            importlib.reload(importlib.import_module(name))

    with triton.knobs.runtime.scope(), pytest.MonkeyPatch.context() as patch:
        triton.knobs.runtime.interpret = interpret
        # A launch swaps the functions of the language for the interpreter's. So does every call of one kernel function
        # by another, once more, which takes half of the time.
        patch.setattr(InterpretedFunction, "__call__", lambda inner, *args, **kwargs: inner.rewrite()(*args, **kwargs))
        patch.setattr(ReduceOps, "generic_reduce", _reduce)
        load()
        yield
    load()


def _reduce(operation, inputs):
    """The interpreter's own goes number by number; this one, of one tensor, row by row."""
    (x,) = inputs
    rows = np.moveaxis(x.handle.data, operation.axis, 0)
    total = operation.to_tensor(rows[0], x.dtype)
    for row in rows[1:]:
        total = operation.combine_fn.fn(total, operation.to_tensor(row, x.dtype))
    return [operation.to_tensor(np.asarray(total.handle.data, rows.dtype), x.dtype)]


def cut_into(steps):
    """In the place of `plan.choose`: tiles of 4, time in chunks of `steps` or (None) in one piece; single steps where
    T is short."""

    def choose(x, count):
        length = x.shape[1]
        tile, each = (4, steps) if length > 8 else (1, 1)
        each = -(-length // tile) * tile if steps is None else each
        return Plan(block=64 if x.shape[2] <= 64 else 128, count=tile, chunks=-(-length // each), steps=each)

    return choose


def make(name, length, width, dtype, start=True, reset=True, mask=True, rows=2):
    """Inputs, flags, and what arrives as gradients of states and final states."""
    generator = torch.Generator().manual_seed(length + width)
    inputs = CASES[name][0](rows, length, width, generator, dtype, start)
    options = flags(rows, length, reset, mask, generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    planes = 2 if name == "lru" else 1
    grads = [torch.randn(rows, length, width, generator=generator).to(dtype) for _ in range(planes)]
    grads += [torch.randn(rows, width, generator=generator).to(wide) for _ in range(planes)]
    return inputs, options, grads


def kernels_on(device, name, inputs, options, grads):
    """States, final states, then the gradient of every input, None where it has none."""
    inputs, grads = ([x if x is None else x.to(device) for x in xs] for xs in (inputs, grads))
    reset, mask = (x if x is None else x.to(device) for x in (options["reset"], options["mask"]))
    if name == "linear":
        a, b, start = inputs
        out = linear.linear_forward(a, b, start, reset, mask)
        back = linear.linear_backward(*grads, a, out[0], start, reset, mask)
    elif name == "lru":
        lam, drive, start = inputs[:2], inputs[2:4], inputs[4:]
        out = lru.lru_forward(*lam, *drive, *start, reset, mask)
        back = lru.lru_backward(*grads, *lam, *out[:2], *start, reset, mask)
    else:
        c, beta, start, fresh = inputs
        epsilon = float(name.split("_")[1])
        out = memory.memory_forward(c, beta, start, epsilon, reset, fresh, mask)
        back = memory.memory_backward(*grads, c, beta, out[0], start, epsilon, 1.3, reset, fresh, mask)
    return [*out, *back]


def kernels_of(name, inputs, options, grads):
    """The same where they run here, brought back."""
    return [x if x is None else x.cpu() for x in kernels_on(DEVICE, name, inputs, options, grads)]


def wanted(name, inputs, options, grads):
    """The same from the reference, differentiated by autograd."""
    leaves = [None if x is None else x.detach().clone().requires_grad_(True) for x in inputs]
    out = CASES[name][1](reference, leaves, **options)
    given = iter(torch.autograd.grad(out, [x for x in leaves if x is not None], grads, allow_unused=True))
    return [*out, *(None if x is None else next(given) for x in leaves)]


def assert_close(name, got, want, dtype):
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        if y is None:
            continue  # of an input that is not there, or (reset_state) takes no part
        worst, scale = (x.double() - y.double()).abs().max().item(), max(1.0, y.abs().max().item())
        assert worst <= TOLERANCE[dtype] * scale, f"{name} output {i}: {worst} of {scale}"
