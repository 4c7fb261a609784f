"""The scans as operators of torch: opaque to `torch.compile`, with shapes for tracing and gradients for autograd.

Each of the three is a pair of operators, hybridlm::<name>_forward and _backward, on the kernels of whichever path
`dispatch` chooses when they run. `linear`, `lru` and `memory` are what the model's scans call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from hybridlm.ops import reference
from hybridlm.ops.dispatch import check_path, check_split, choose, explain, forced, has_memory, kernels

__all__ = ["check_path", "explain", "kernel", "linear", "lru", "memory", "step_kernels"]


def linear(a, b, initial_state, reset, mask, path: str | None = None) -> tuple[Tensor, Tensor]:
    """`linear_scan` with its flags in order; a and b of one dtype."""
    path = forced(path)
    if path == "reference":
        return reference.linear_scan(a, b, initial_state, reset=reset, mask=mask)
    return linear_forward(a, b, initial_state, reset, mask, path or "")


def lru(lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask, path: str | None = None) -> tuple[Tensor, ...]:
    """`lru_scan`, planes one after the other: states (re, im), final state (re, im)."""
    path = forced(path)
    if path == "reference":
        start = None if s_re is None else (s_re, s_im)
        states, final = reference.lru_scan((lam_re, lam_im), (b_re, b_im), start, reset=reset, mask=mask)
        return *states, *final
    return lru_forward(lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask, path or "")


def memory(
    c, beta, initial_state, epsilon: float, slope: float, reset, reset_state, mask, path: str | None = None
) -> tuple[Tensor, Tensor]:
    """`memory_scan` with its options in order; c and beta of one dtype."""
    path = forced(path)
    if path == "reference":
        options = {"epsilon": epsilon, "slope": slope, "reset": reset, "reset_state": reset_state, "mask": mask}
        return reference.memory_scan(c, beta, initial_state, **options)
    return memory_forward(c, beta, initial_state, epsilon, slope, reset, reset_state, mask, path or "")


def step_kernels(x: Tensor, *others: Tensor) -> dict[str, Any] | None:
    """The kernels that a decode step on x is worth, called without the operators; None: PyTorch does as well."""
    if torch.compiler.is_compiling() or not has_memory(x) or x.device.type != "cpu":
        return None
    if any(other.dtype != x.dtype for other in others):
        return None
    return kernels("cpu") if choose(x.device, x.dtype).path == "cpu" else None


def kernel(name: str, x: Tensor, path: str | None = None) -> Any:
    """One of the six functions by name, of the path for tensors like x: for a caller that differentiates by itself."""
    chosen = choose(x.device, x.dtype, path).path
    check_split(chosen)
    return kernels(chosen)[name]


def _kernel(name: str, x: Tensor, path: str) -> Any:
    return kernels(choose(x.device, x.dtype, path or None).path)[name]


def _wide(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As the recurrence's dtype, for tracing."""
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _state(x: Tensor) -> Tensor:
    return _wide(x, (x.shape[0], x.shape[2]))


def _channels(x: Tensor) -> Tensor:
    return _wide(x, (x.shape[2],))


def _cast(grad: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else grad.to(like.dtype)


def _no_second(name: str) -> Callable[..., Any]:
    """The gradient of a backward operator, which there is none of."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError(
            f"{name}_scan: second derivatives pass the reference loop alone. Run what is differentiated twice with "
            "path='reference', or inside `with hybridlm.ops.using('reference'):`."
        )

    return refuse


# linear_scan


@custom_op("hybridlm::linear_forward", mutates_args=())
def linear_forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, mask: Tensor | None, path: str
) -> tuple[Tensor, Tensor]:
    return _kernel("linear_forward", b, path)(a, b, initial_state, reset, mask)


@linear_forward.register_fake
def _(a, b, initial_state, reset, mask, path):
    return _like(b), _state(b)


@custom_op("hybridlm::linear_backward", mutates_args=())
def linear_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    a: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernel("linear_backward", a, path)(grad_states, grad_final, a, states, initial_state, reset, mask)


@linear_backward.register_fake
def _(grad_states, grad_final, a, states, initial_state, reset, mask, path):
    return _like(a), _like(a), _state(a)


linear_backward.register_autograd(_no_second("linear"))


def _keep_linear(ctx, inputs, output):
    a, _, initial_state, reset, mask, ctx.path = inputs
    ctx.save_for_backward(a, output[0], initial_state, reset, mask)


def _linear_gradients(ctx, grad_states, grad_final):
    saved = _, _, start, _, _ = ctx.saved_tensors  # read once, as checkpointing wants it
    grad_a, grad_b, grad_start = linear_backward(grad_states, grad_final, *saved, ctx.path)
    return grad_a, grad_b, _cast(grad_start, start), None, None, None


linear_forward.register_autograd(_linear_gradients, setup_context=_keep_linear)


# lru_scan


@custom_op("hybridlm::lru_forward", mutates_args=())
def lru_forward(
    lam_re: Tensor,
    lam_im: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernel("lru_forward", b_re, path)(lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask)


@lru_forward.register_fake
def _(lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask, path):
    return _like(b_re), _like(b_re), _state(b_re), _state(b_re)


@custom_op("hybridlm::lru_backward", mutates_args=())
def lru_backward(
    grad_re: Tensor,
    grad_im: Tensor,
    grad_final_re: Tensor,
    grad_final_im: Tensor,
    lam_re: Tensor,
    lam_im: Tensor,
    re: Tensor,
    im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = grad_re, grad_im, grad_final_re, grad_final_im
    return _kernel("lru_backward", re, path)(*grads, lam_re, lam_im, re, im, s_re, s_im, reset, mask)


@lru_backward.register_fake
def _(grad_re, grad_im, grad_final_re, grad_final_im, lam_re, lam_im, re, im, s_re, s_im, reset, mask, path):
    return _channels(re), _channels(re), _like(re), _like(re), _state(re), _state(re)


lru_backward.register_autograd(_no_second("lru"))


def _keep_lru(ctx, inputs, output):
    lam_re, lam_im, _, _, s_re, s_im, reset, mask, ctx.path = inputs
    ctx.save_for_backward(lam_re, lam_im, *output[:2], s_re, s_im, reset, mask)


def _lru_gradients(ctx, *grads):
    saved = lam_re, lam_im, _, _, s_re, s_im, _, _ = ctx.saved_tensors
    d_re, d_im, b_re, b_im, start_re, start_im = lru_backward(*grads, *saved, ctx.path)
    starts = _cast(start_re, s_re), _cast(start_im, s_im)
    return d_re.to(lam_re.dtype), d_im.to(lam_im.dtype), b_re, b_im, *starts, None, None, None


lru_forward.register_autograd(_lru_gradients, setup_context=_keep_lru)


# memory_scan


@custom_op("hybridlm::memory_forward", mutates_args=())
def memory_forward(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    slope: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor]:
    return _kernel("memory_forward", c, path)(c, beta, initial_state, epsilon, reset, reset_state, mask)


@memory_forward.register_fake
def _(c, beta, initial_state, epsilon, slope, reset, reset_state, mask, path):
    return _like(c), _state(c)


@custom_op("hybridlm::memory_backward", mutates_args=())
def memory_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    c: Tensor,
    beta: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    slope: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last, the gradient of reset_state, is zeros where there is none: an operator returns tensors alone."""
    *grads, fresh = _kernel("memory_backward", c, path)(
        grad_states, grad_final, c, beta, states, initial_state, epsilon, slope, reset, reset_state, mask
    )
    return *grads, _channels(c).zero_() if fresh is None else fresh


@memory_backward.register_fake
def _(grad_states, grad_final, c, beta, states, initial_state, epsilon, slope, reset, reset_state, mask, path):
    return _like(c), _like(c), _state(c), _channels(c)


memory_backward.register_autograd(_no_second("memory"))


def _keep_memory(ctx, inputs, output):
    c, beta, initial_state, ctx.epsilon, ctx.slope, reset, reset_state, mask, ctx.path = inputs
    ctx.save_for_backward(c, beta, output[0], initial_state, reset, reset_state, mask)


def _memory_gradients(ctx, grad_states, grad_final):
    c, beta, states, start, reset, reset_state, mask = ctx.saved_tensors
    options = start, ctx.epsilon, ctx.slope, reset, reset_state, mask, ctx.path
    grad_c, grad_beta, grad_start, fresh = memory_backward(grad_states, grad_final, c, beta, states, *options)
    return grad_c, grad_beta, _cast(grad_start, start), None, None, None, _cast(fresh, reset_state), None, None


memory_forward.register_autograd(_memory_gradients, setup_context=_keep_memory)
