"""State-space duality (Dao and Gu, arXiv 2405.21060): a linear recurrence with one decay per head, as matrix products.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          S (P, K) for each head: head width P, state size K
    y_t = S_t C_t

The text is cut into chunks. Inside a chunk, y is a masked attention, (C B^T * L) (dt x), where L[i, j] is the decay
from j to i; each chunk also leaves one state, and a short loop carries the states from chunk to chunk. The sums of the
log-decays are taken over each span by itself rather than as differences of running sums, which would cancel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .scan_hybridlm import linear_scan
from .sequence_hybridlm import sharing
from .stepwise_hybridlm import exporting, stepwise

CHUNK = 64
"""Tokens in a chunk: the products inside grow with it, the loop over chunks shrinks."""


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    *,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x (B, T, H, P); dt (B, T, H), at least 0; A (H,), negative; B, C (B, T, G, K), H a multiple of G; initial_state
    (B, H, P, K). All fp32, or all fp64. reset, mask: (B, T) bool, as in the other scans.

    Returns y (B, T, H, P), and the state after the last token, (B, H, P, K).
    """
    length, heads = x.shape[1:3]
    if mask is not None:
        dt = dt.masked_fill(~mask.unsqueeze(2), 0.0)  # decay 1, nothing added: the state holds
        reset = None if reset is None else reset & mask
    if exporting():
        return _exported(x, dt, A, B, C, initial_state, reset)
    size = min(CHUNK, length)
    x, dt, B, C = (_chunked(t, size) for t in (x * dt.unsqueeze(3), dt, B, C))
    per_group = heads // B.shape[3]
    log_decay = (dt * A).transpose(2, 3)  # (B, chunks, H, size)
    spans = _span_sums(log_decay)
    from_start = log_decay.cumsum(3)
    decays, into, whole = spans.exp(), from_start.exp(), from_start[..., -1].exp()
    if reset is not None:
        document = _chunked(reset, size).long().cumsum(2).unsqueeze(2)  # (B, chunks, 1, size)
        decays = decays * (document.unsqueeze(4) == document.unsqueeze(3))
        into, whole = into * (document == 0), whole * (document[..., -1] == 0)
    scores = torch.einsum("bcigk,bcjgk->bcgij", C, B).repeat_interleave(per_group, dim=2)
    y = torch.einsum("bchij,bcjhp->bcihp", scores * decays, x)
    # What each chunk leaves by itself, and the state that each one starts from.
    B, C = B.repeat_interleave(per_group, dim=3), C.repeat_interleave(per_group, dim=3)
    left = torch.einsum("bchj,bcjhp,bcjhk->bchpk", decays[..., -1, :], x, B)
    starts, state = (_chunk_states if sharing() is None else _chunk_states_of_part)(left, whole, initial_state)
    y = y + torch.einsum("bchi,bcihk,bchpk->bcihp", into, C, starts)
    return y.flatten(1, 2)[:, :length], state


def _chunk_states(left: Tensor, whole: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk (B, chunks, H, P, K), and behind the last one, from what each leaves by itself, as
    many, and its decay (B, chunks, H)."""
    starts = []
    for i in range(left.shape[1]):
        starts.append(state)
        state = torch.addcmul(left[:, i], whole[:, i, :, None, None], state)
    return torch.stack(starts, 1), state


def _chunk_states_of_part(left: Tensor, whole: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same by a scan over chunks, which knows how to pass states between processes. Its first step holds: the
    state behind that is the one that this part starts from."""
    shape = left.shape[2:]
    left, whole = F.pad(left, (0, 0, 0, 0, 0, 0, 1, 0)), F.pad(whole, (0, 0, 1, 0), value=1.0)
    decay = whole[..., None, None].expand_as(left).flatten(2)
    states, last = linear_scan(decay, left.flatten(2), state.flatten(1))
    return states[:, :-1].unflatten(2, shape), last.unflatten(1, shape)


def _exported(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two equations, token by token: in an exported graph the number of chunks is not known."""
    per_group = dt.shape[2] // B.shape[2]
    decay = torch.exp(dt * A)
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(2), 0.0)
    inputs = {"x": x * dt.unsqueeze(3), "decay": decay, "B": B, "C": C}

    def step(state: tuple[Tensor], now: dict[str, Tensor]) -> tuple[tuple[Tensor], Tensor]:
        B, C = (now[name].repeat_interleave(per_group, dim=1).unsqueeze(2) for name in ("B", "C"))  # (B, H, 1, K)
        new = torch.addcmul(now["x"].unsqueeze(3) * B, now["decay"][:, :, None, None], state[0])
        return (new,), (new * C).sum(3)

    (last,), y = stepwise(step, (state,), inputs)
    return y, last


def _chunked(t: Tensor, size: int) -> Tensor:
    """(B, T, ...) -> (B, chunks, size, ...); the end is filled with 0."""
    missing = -t.shape[1] % size
    if missing:
        t = F.pad(t, (*[0] * (2 * (t.ndim - 2)), 0, missing))
    return t.unflatten(1, (-1, size))


def _span_sums(log_decay: Tensor) -> Tensor:
    """(..., size) -> (..., size, size): [i, j] is the sum over j+1 ... i, and -inf above the diagonal."""
    size = log_decay.shape[-1]
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, size)
    below = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    sums = steps.masked_fill(~below, 0.0).cumsum(-2)
    return sums.masked_fill(below.T, -torch.inf)
