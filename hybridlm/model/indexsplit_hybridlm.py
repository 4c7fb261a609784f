"""The scan of finite-state heads where a sequence is split over processes: what passes between parts are maps.

    forward     the map of this part, from every state to where it leads; through those of the parts before, the state
                that this one starts from; the scan from there
    backward    lambda from nothing behind: what this part hands back for every state; through the maps of the parts
                behind, what arrives from them; lambda from there

A head sends n bytes forward and n numbers backward, whatever the length of the parts. Forward is twice the scan of one
process, on the same kernels, and its states are exact; the backward runs in pure PyTorch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .indexmaps_hybridlm import at, composed, gradients, index_forward, worths
from .seam_hybridlm import index
from .sequence_hybridlm import SequenceRanks


def index_split(ranks: SequenceRanks, path: str | None, inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """`index_scan` of this process's part: h and states. inputs: theta, bias, noise, values, s_0 of the whole sequence,
    temperature, reset, and whether a gradient will be asked for."""
    return _IndexSplit.apply(ranks, path, *inputs)  # pyright: ignore[reportReturnType]


class _IndexSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks, path, theta, bias, noise, values, start, temperature, reset, keep):
        forward = index_forward if index is None else index.kernels(theta.device, theta.dtype, path).index_forward
        maps = forward(theta, bias, noise, values, start, temperature, reset, None, True)[3]
        everyone = _gather_maps(ranks, composed(maps), reset)
        before = start
        for part in range(ranks.rank):
            before = at(everyone[part, ..., :-1], before.unsqueeze(-1)).squeeze(-1)
        h, states, p, maps = forward(theta, bias, noise, values, before, temperature, reset, None, keep)
        ctx.save_for_backward(p, maps, states, values, before, reset, everyone)
        ctx.ranks, ctx.temperature, ctx.dtype = ranks, temperature, theta.dtype
        ctx.mark_non_differentiable(states)
        return h, states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        p, maps, states, values, before, reset, everyone = ctx.saved_tensors
        ranks, q = ctx.ranks, torch.einsum("btkd,knd->btkn", grad, values)
        behind = ranks.gather(_handed_back(worths(maps, q, reset), maps, reset))
        arriving = torch.zeros_like(behind[0])
        for part in range(ranks.size - 1, ranks.rank, -1):
            leads, begun = everyone[part].split([maps.shape[-1], 1], -1)
            arriving = behind[part] + arriving.gather(-1, leads.long()).masked_fill(begun > 0, 0.0)
        q[:, -1] += arriving
        worth = worths(maps, q, reset)
        found = gradients(grad, worth, p, states, values, before, ctx.temperature, reset, None, ctx.dtype)
        grad_theta, grad_bias, grad_values = found
        grad_bias = grad_bias if ctx.needs_input_grad[3] else None
        return None, None, grad_theta, grad_bias, None, grad_values, None, None, None, None


def _gather_maps(ranks: SequenceRanks, own: Tensor, reset: Tensor | None) -> Tensor:
    """The map of every part, (parts, B, K, n + 1) uint8; last whether a document begins in it, which nothing passes
    back."""
    begun = torch.zeros_like(own[..., :1])
    if reset is not None:
        begun = begun | reset.any(1)[:, None, None].to(own.dtype)
    ranks.carried += 1
    return ranks.gather(torch.cat([own, begun], -1))


def _handed_back(worth: Tensor, maps: Tensor, reset: Tensor | None) -> Tensor:
    """What it would be worth to come into this part in each state, (B, K, n), from lambda (B, T, K, n)."""
    found = worth[:, 0].gather(-1, maps[:, 0].long())
    return found if reset is None else found.masked_fill(reset[:, :1, None], 0.0)
