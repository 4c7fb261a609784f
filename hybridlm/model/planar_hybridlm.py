"""The complex scan in pure PyTorch, on (real, imaginary) planes: the two levels of `twolevel_hybridlm`.

lambda is constant and never spread over time: without padding and resets a chunk's factor is one number per channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .twolevel_hybridlm import chunked, previous_states, recurrence_dtype, start_of, steps_of

Planar = tuple[Tensor, Tensor]


def times(x: Planar, y: Planar) -> Planar:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def times_plus(x: Planar, y: Planar, z: Planar) -> Planar:
    """x y + z, complex."""
    re = torch.addcmul(z[0], x[0], y[0]).addcmul_(x[1], y[1], value=-1)
    return re, torch.addcmul(z[1], x[0], y[1]).addcmul_(x[1], y[0])


class _Decay:
    """lambda as each step sees it: itself, 1 where the token is padding, 0 where a document starts. Chunks side by
    side."""

    def __init__(self, decay: Planar, reset: Tensor | None, mask: Tensor | None, steps: int):
        self.decay, self.steps = decay, steps
        self.plain = reset is None and mask is None
        self.reset = None if reset is None else chunked(reset.unsqueeze(2), steps, False)
        self.padding = None if mask is None else chunked(~mask.unsqueeze(2), steps, True)

    def at(self, i: int) -> Planar:
        re, im = self.decay
        if self.reset is not None:
            here = self.reset[:, :, i]
            re, im = torch.where(here, 0.0, re), torch.where(here, 0.0, im)
        if self.padding is not None:
            here = self.padding[:, :, i]
            re, im = torch.where(here, 1.0, re), torch.where(here, 0.0, im)
        return re, im

    def total(self) -> Planar:
        """The product over a chunk: (N,) where lambda is plain, else (B, chunks, N)."""
        product = self.at(0)
        for i in range(1, self.steps):
            product = times(self.at(i), product)
        return product


def _scan_planar(decay: Planar, b: Planar, start: Planar, reset: Tensor | None, mask: Tensor | None) -> Planar:
    """s_t = lambda_t s_{t-1} + b_t from s_0 = start, planar (B, T, N), no autograd."""
    length = b[0].shape[1]
    steps = steps_of(length)
    lam = _Decay(decay, reset, mask, steps)
    re, im = chunked(b[0], steps, 0.0), chunked(b[1], steps, 0.0)
    chunks = re.shape[1]
    state: Planar = (start[0].unsqueeze(1), start[1].unsqueeze(1))
    if chunks > 1:
        total_b: Planar = (re[:, :, 0], im[:, :, 0])
        for i in range(1, steps):
            total_b = times_plus(lam.at(i), total_b, (re[:, :, i], im[:, :, i]))
        # The end of the last chunk may be filled up, and lambda is not 1 there: nothing is carried beyond that chunk.
        total_a = lam.total()
        carried = torch.empty_like(total_b[0]), torch.empty_like(total_b[1])
        here = start
        for j in range(chunks):
            carried[0][:, j], carried[1][:, j] = here
            factor = total_a if lam.plain else (total_a[0][:, j], total_a[1][:, j])
            here = times_plus(factor, here, (total_b[0][:, j], total_b[1][:, j]))
        state = carried
    out_re, out_im = torch.empty_like(re), torch.empty_like(im)
    for i in range(steps):
        state = times_plus(lam.at(i), state, (re[:, :, i], im[:, :, i]))
        out_re[:, :, i], out_im[:, :, i] = state
    return out_re.flatten(1, 2)[:, :length], out_im.flatten(1, 2)[:, :length]


def lru_forward(
    lam_re: Tensor,
    lam_im: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    s_re: Tensor | None,
    s_im: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and final state, each (real, imaginary)."""
    dtype = recurrence_dtype(b_re)
    drive = b_re.to(dtype), b_im.to(dtype)
    if mask is not None:
        padding = ~mask.unsqueeze(2)
        drive = drive[0].masked_fill(padding, 0.0), drive[1].masked_fill(padding, 0.0)
    start = start_of(s_re, b_re, dtype), start_of(s_im, b_re, dtype)
    re, im = _scan_planar((lam_re.to(dtype), lam_im.to(dtype)), drive, start, reset, mask)
    return re.to(b_re.dtype), im.to(b_re.dtype), re[:, -1].clone(), im[:, -1].clone()


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of lambda, b and the initial state, each (real, imaginary)."""
    dtype = recurrence_dtype(re)
    conj = lam_re.to(dtype), -lam_im.to(dtype)
    adj = _adjoint(conj, (grad_re.to(dtype), grad_im.to(dtype)), (grad_final_re, grad_final_im), reset, mask)
    first = _Decay(conj, None if reset is None else reset[:, :1], None if mask is None else mask[:, :1], 1).at(0)
    to_start = times(first, (adj[0][:, :1], adj[1][:, :1]))
    if mask is not None:
        padding = ~mask.unsqueeze(2)
        adj = adj[0].masked_fill(padding, 0.0), adj[1].masked_fill(padding, 0.0)
    prev_re = previous_states(re.to(dtype), start_of(s_re, re, dtype))
    prev_im = previous_states(im.to(dtype), start_of(s_im, re, dtype))
    if reset is not None:
        here = reset.unsqueeze(2)
        prev_re, prev_im = prev_re.masked_fill(here, 0.0), prev_im.masked_fill(here, 0.0)
    d_re = (adj[0] * prev_re + adj[1] * prev_im).sum((0, 1))
    d_im = (adj[1] * prev_re - adj[0] * prev_im).sum((0, 1))
    return d_re, d_im, adj[0].to(re.dtype), adj[1].to(re.dtype), to_start[0][:, 0], to_start[1][:, 0]


def _adjoint(conj: Planar, grad: Planar, grad_final: Planar, reset: Tensor | None, mask: Tensor | None) -> Planar:
    """The gradient that arrives at each s_t from all later ones.

    Time reversed: a step's factor is that of the step after it, so the flags move by one; at the right end nothing
    decays.
    """
    later_reset = None if reset is None else F.pad(reset[:, 1:], (0, 1), value=False).flip(1)
    later_mask = None if mask is None else F.pad(mask[:, 1:], (0, 1), value=False).flip(1)
    if mask is None:
        # Only the final state's own gradient meets the factor 1: add it to the last step, and lambda stays plain.
        grad = grad[0].clone(), grad[1].clone()
        grad[0][:, -1] += grad_final[0]
        grad[1][:, -1] += grad_final[1]
        grad_final = torch.zeros_like(grad_final[0]), torch.zeros_like(grad_final[1])
    re, im = _scan_planar(conj, (grad[0].flip(1), grad[1].flip(1)), grad_final, later_reset, later_mask)
    return re.flip(1), im.flip(1)
