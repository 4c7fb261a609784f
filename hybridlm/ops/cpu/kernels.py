"""The three scans and their gradients on the CPU, in C: no autograd, inputs that were checked before.

Storage in the inputs' dtype (fp32, bf16, fp16, fp64), the recurrence in fp32 or fp64. Deterministic for a given number
of threads; how they share the work stands in scans.c. `forced` goes to `library.scan`.
"""

import torch
from torch import Tensor

from hybridlm.ops.cpu.library import scan


def linear_forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, mask: Tensor | None, **forced
) -> tuple[Tensor, Tensor]:
    """States, as b, and the final state."""
    states, final, start = _like(b), _state(b), _flat(initial_state, b)
    scan("linear_forward", (a, b), (states,), (start,), (final,), reset=reset, mask=mask, **forced)
    return states, final


def linear_backward(
    grad_states: Tensor,
    grad_final: Tensor,
    a: Tensor,
    states: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    **forced,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and the initial state."""
    grad_a, grad_b, grad_start = _like(a), _like(a), _state(a)
    scan(
        "linear_backward",
        (grad_states, a, states),
        (grad_a, grad_b),
        (_flat(grad_final, a),),
        (grad_start,),
        initial=(_flat(initial_state, a),),
        reset=reset,
        mask=mask,
        **forced,
    )
    return grad_a, grad_b, grad_start


def lru_forward(
    lam_re: Tensor,
    lam_im: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    **forced,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and final state, each (real, imaginary)."""
    re, im, final_re, final_im = _like(b_re), _like(b_re), _state(b_re), _state(b_re)
    scan(
        "lru_forward",
        (b_re, b_im),
        (re, im),
        (_flat(s_re, b_re), _flat(s_im, b_re)),
        (final_re, final_im),
        channel=(_flat(lam_re, b_re), _flat(lam_im, b_re)),
        reset=reset,
        mask=mask,
        **forced,
    )
    return re, im, final_re, final_im


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
    **forced,
) -> tuple[Tensor, ...]:
    """Gradients of lambda, b and the initial state, each (real, imaginary)."""
    grad_b, grad_start = (_like(re), _like(re)), (_state(re), _state(re))
    grad_lam = _channels(re), _channels(re)
    scan(
        "lru_backward",
        (grad_re, grad_im, re, im),
        grad_b,
        (_flat(grad_final_re, re), _flat(grad_final_im, re)),
        grad_start,
        initial=(_flat(s_re, re), _flat(s_im, re)),
        channel=(_flat(lam_re, re), _flat(lam_im, re)),
        summed=grad_lam,
        reset=reset,
        mask=mask,
        **forced,
    )
    return (*grad_lam, *grad_b, *grad_start)


def memory_forward(
    c: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    epsilon: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    mask: Tensor | None,
    **forced,
) -> tuple[Tensor, Tensor]:
    """States, as c, and the final state."""
    states, final = _like(c), _state(c)
    scan(
        "memory_forward",
        (c, beta),
        (states,),
        (_flat(initial_state, c),),
        (final,),
        channel=(_flat(reset_state, c),),
        reset=reset,
        mask=mask,
        epsilon=epsilon,
        **forced,
    )
    return states, final


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
    **forced,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of c, beta, the initial state and the state that a reset brings back (None where there is none)."""
    grad_c, grad_beta, grad_start = _like(c), _like(c), _state(c)
    grad_reset = None if reset is None or reset_state is None else _channels(c)
    scan(
        "memory_backward",
        (grad_states, c, beta, states),
        (grad_c, grad_beta),
        (_flat(grad_final, c),),
        (grad_start,),
        initial=(_flat(initial_state, c),),
        channel=(_flat(reset_state, c),),
        summed=() if grad_reset is None else (grad_reset,),
        reset=reset,
        mask=mask,
        epsilon=epsilon,
        slope=slope,
        **forced,
    )
    return grad_c, grad_beta, grad_start, grad_reset


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _flat(x: Tensor | None, like: Tensor) -> Tensor | None:
    """x as the kernels read states and what is one number per channel."""
    return None if x is None else x.to(_wide(like)).contiguous().resolve_neg()


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _state(x: Tensor) -> Tensor:
    return torch.empty(x.shape[0], x.shape[2], dtype=_wide(x))


def _channels(x: Tensor) -> Tensor:
    return torch.empty(x.shape[2], dtype=_wide(x))
