"""The scan of finite-state heads in pure PyTorch: maps between states, composed by lookup.

Two levels of about sqrt(T), as in `twolevel_hybridlm`, forward over maps (B, T, K, n) uint8, backward over what each
state would be worth. No autograd; what the arguments mean stands in `indexscan_hybridlm`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .twolevel_hybridlm import chunked, recurrence_dtype, steps_of


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h (B, T, K, d) and states (B, T, K); with `keep` also what the gradient needs: p (B, T, K, n), the softmax of the
    rows that decided, and the maps (B, T, K, n) uint8, flags worked in. Empty without it."""
    logits = logits_of(theta, bias, noise)
    starts = starts_of(reset, mask)
    maps = maps_of(logits, starts, mask)
    states = follow(maps, initial_state)
    read = _read(logits, before_of(states, initial_state, starts))
    h = values[torch.arange(values.shape[0], device=values.device), states.long()]
    nan = read.isnan().any(-1, keepdim=True)
    h = h.masked_fill(nan if mask is None else nan & mask[:, :, None, None], torch.nan)
    if not keep:
        return h, states, read.new_empty(0), maps.new_empty(0)
    return h, states, torch.softmax(read / temperature, -1), maps


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of theta in `dtype`, of bias (K, n, n) and of values (K, n, d), from that of h."""
    worth = worths(maps, torch.einsum("btkd,knd->btkn", grad, values), starts_of(reset, mask))
    return gradients(grad, worth, p, states, values, initial_state, temperature, reset, mask, dtype)


def gradients(
    grad: Tensor,
    worth: Tensor,
    p: Tensor,
    states: Tensor,
    values: Tensor,
    initial_state: Tensor,
    temperature: float,
    reset: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from lambda, `worth` (B, T, K, n), too."""
    n, starts = p.shape[-1], starts_of(reset, mask)
    row = p * (worth - (p * worth).sum(-1, keepdim=True)) / temperature
    if mask is not None:
        row = row.masked_fill(~mask[:, :, None, None], 0.0)
    before = before_of(states, initial_state, starts)
    grad_theta = row.new_zeros(*row.shape, n, dtype=dtype)
    grad_theta.scatter_(-2, _rows(before, n), row.unsqueeze(-2).to(dtype))
    grad_bias = torch.einsum("btkj,btkl->kjl", one_hot(before, n, row.dtype), row)
    grad_values = torch.einsum("btkn,btkd->knd", one_hot(states, n, row.dtype), grad)
    return grad_theta, grad_bias, grad_values


def logits_of(theta: Tensor, bias: Tensor | None, noise: Tensor | None) -> Tensor:
    """theta + bias + noise, in this order, in the dtype of the recurrence."""
    logits = theta.to(recurrence_dtype(theta))
    if bias is not None:
        logits = logits + bias
    return logits if noise is None else logits + noise


def starts_of(reset: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Where documents begin: a masked position never resets."""
    return reset if reset is None or mask is None else reset & mask


def maps_of(logits: Tensor, starts: Tensor | None, mask: Tensor | None) -> Tensor:
    """tau (B, T, K, n) uint8, flags worked in; of equal logits the first destination wins."""
    maps = logits.argmax(-1).to(torch.uint8)
    if starts is not None:
        maps = torch.where(starts[:, :, None, None], maps[..., :1], maps)
    if mask is not None:
        stay = torch.arange(maps.shape[-1], device=maps.device, dtype=torch.uint8)
        maps = torch.where(mask[:, :, None, None], maps, stay)
    return maps


def follow(maps: Tensor, start: Tensor) -> Tensor:
    """s_t = tau_t(s_{t-1}) from s_0 = start (B, K) uint8; maps (B, T, K, n)."""
    length = maps.shape[1]
    steps = steps_of(length)
    parts = _parts(maps, steps)
    state = start.unsqueeze(1)
    if parts.shape[1] > 1:
        composed = parts[:, :, 0]
        for i in range(1, steps):
            composed = at(parts[:, :, i], composed)
        state, carried = start, []
        for j in range(parts.shape[1]):
            carried.append(state)
            state = at(composed[:, j], state.unsqueeze(-1)).squeeze(-1)
        state = torch.stack(carried, 1)
    states = []
    for i in range(steps):
        state = at(parts[:, :, i], state.unsqueeze(-1)).squeeze(-1)
        states.append(state)
    return torch.stack(states, 2).flatten(1, 2)[:, :length]


def composed(maps: Tensor) -> Tensor:
    """Where each state leads over all steps: (B, T, K, n) -> (B, K, n)."""
    while maps.shape[1] > 1:
        rest = maps[:, -1:] if maps.shape[1] % 2 else maps[:, :0]
        maps = torch.cat([at(maps[:, 1::2], maps[:, : maps.shape[1] // 2 * 2 : 2]), rest], 1)
    return maps[:, 0]


def worths(maps: Tensor, grad: Tensor, starts: Tensor | None) -> Tensor:
    """lambda_t[s] = q_t[s] + lambda_{t+1}[tau_{t+1}(s)] for all s, nothing behind the end or a document's; grad, q
    (B, T, K, n)."""
    length = maps.shape[1]
    if length == 1:
        return grad
    steps = steps_of(length)
    to, grad = _parts(F.pad(maps[:, 1:], (0, 0, 0, 0, 0, 1)), steps), _parts(grad, steps)
    cut = None
    if starts is not None:
        cut = chunked(F.pad(starts[:, 1:], (0, 1)).unsqueeze(2), steps, False).unsqueeze(-1)

    def back(i: int, later: Tensor) -> Tensor:
        reached = later.gather(-1, to[:, :, i].long())
        return grad[:, :, i] + (reached if cut is None else reached.masked_fill(cut[:, :, i], 0.0))

    inner = range(steps - 1, -1, -1)
    chunks = to.shape[1]
    worth = torch.zeros_like(grad[:, :, 0])
    if chunks > 1:
        total, composed = worth, torch.arange(maps.shape[-1], device=maps.device).expand(to[:, :, 0].shape)
        for i in inner:
            total, composed = back(i, total), composed.gather(-1, to[:, :, i].long())
        ended = None if cut is None else cut.any(2)
        carried, later = [], worth[:, 0]
        for j in range(chunks - 1, -1, -1):
            carried.append(later)
            reached = later.gather(-1, composed[:, j])
            later = total[:, j] + (reached if ended is None else reached.masked_fill(ended[:, j], 0.0))
        worth = torch.stack(carried[::-1], 1)
    found = []
    for i in inner:
        worth = back(i, worth)
        found.append(worth)
    return torch.stack(found[::-1], 2).flatten(1, 2)[:, :length]


def at(maps: Tensor, states: Tensor) -> Tensor:
    """maps[..., states[..., i]], uint8."""
    return maps.gather(-1, states.long())


def one_hot(states: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """(..., n): 1 at the state."""
    return (states.unsqueeze(-1) == torch.arange(n, device=states.device)).to(dtype)


def before_of(states: Tensor, initial_state: Tensor, starts: Tensor | None) -> Tensor:
    """s_{t-1} (B, T, K), 0 at a document's start."""
    before = torch.cat([initial_state.unsqueeze(1), states[:, :-1]], 1)
    return before if starts is None else before.masked_fill(starts.unsqueeze(2), 0)


def _parts(x: Tensor, steps: int) -> Tensor:
    """(B, T, K, n) -> (B, chunks, steps, K, n); the end is filled with zeros."""
    return chunked(x.flatten(2), steps, 0).unflatten(-1, x.shape[2:])


def _rows(states: Tensor, n: int) -> Tensor:
    """(B, T, K) as an index of rows, (B, T, K, 1, n)."""
    return states.long()[..., None, None].expand(*states.shape, 1, n)


def _read(logits: Tensor, before: Tensor) -> Tensor:
    """The logits that decided: rows j = s_{t-1}, (B, T, K, n)."""
    return logits.gather(-2, _rows(before, logits.shape[-1])).squeeze(-2)
