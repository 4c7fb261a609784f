"""Cross-entropy over the vocabulary without its logits: a chunk of tokens at a time, with its gradient made at once.

The logits of a batch are its largest tensor by far: written, read and written again they cost as much as several
layers. torch's own `linear_cross_entropy` does the same, but knows no autocast and adds the loss up in the dtype of its
inputs.

z-loss (PaLM, arXiv 2204.02311, section 5): weight * mean of (log Z)^2 over the valid targets, log Z = logsumexp of the
logits. It holds the softmax's normaliser near 1, and with it the logits near 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK = 1024
IGNORED = -100


@dataclass
class CausalLMOutputWithZLoss(CausalLMOutputWithPast):
    """What `forward` gives where it was given a `z_loss`: `loss` is cross_entropy + weight * z_loss."""

    cross_entropy: Tensor | None = None
    """The loss without the penalty; a scalar without a gradient."""
    z_loss: Tensor | None = None
    """Mean of (log Z)^2, not weighted; a scalar without a gradient."""


def without_logits(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of `ForCausalLMLoss` on head(hidden), a scalar; hidden (B, T, D), labels and shift_labels (B, T).

    With the penalty of weight `z_loss` in it; behind it the cross-entropy alone and the mean of (log Z)^2 (0 where the
    weight is), both without a gradient.
    """
    targets = _targets(labels, shift_labels).to(hidden.device)
    dtype = torch.get_autocast_dtype(hidden.device.type) if _autocasts(hidden) else hidden.dtype
    options = targets, dtype, torch.is_grad_enabled(), z_loss
    sums = _ChunkedLoss.apply(hidden.flatten(0, 1), head.weight, *options)
    count = _count(targets != IGNORED, num_items_in_batch)
    loss, cross_entropy, squares = (total / count for total in sums)  # pyright: ignore[reportGeneralTypeIssues]
    return loss, cross_entropy, squares


def squared_log_z(
    logits: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    ignored: int = IGNORED,
) -> Tensor:
    """Mean of (log Z)^2 over the valid targets, a scalar; logits (B, T, V), labels and shift_labels (B, T)."""
    valid = _targets(labels, shift_labels, ignored).to(logits.device) != ignored
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_total = torch.logsumexp(wide.flatten(0, 1), 1)
    return log_total.square().where(valid, 0.0).sum() / _count(valid, num_items_in_batch)


def _targets(labels: Tensor | None, shift_labels: Tensor | None, ignored: int = IGNORED) -> Tensor:
    """(B * T)."""
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignored)[..., 1:]
    return shift_labels.reshape(-1)


def _count(valid: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | int:
    count = valid.sum() if num_items_in_batch is None else num_items_in_batch
    return count.to(valid.device) if isinstance(count, Tensor) else count


def can_do_without(head: nn.Module, loss_function: Callable, options: Iterable[str]) -> bool:
    """Whether `without_logits` gives the same: a plain head, transformers' own loss, no option that is not known here.

    Not while a graph is traced: the chunks would be as many copies of their operations in it.
    """
    plain = type(head) is nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks
    return (
        plain
        and loss_function is ForCausalLMLoss
        and "ignore_index" not in options
        and not torch.compiler.is_compiling()
    )


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


class _ChunkedLoss(torch.autograd.Function):
    """Sum over tokens of -log softmax(hidden weight^T)[target] + z_loss (log Z)^2, then each of the two terms alone;
    products in `dtype`, the rest in fp32 (fp64). d (log Z)^2 / d logits = 2 log Z softmax."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, grads, z_loss):
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        cross_entropy, squares = torch.zeros(2, dtype=wide, device=hidden.device).unbind()
        grad_hidden = torch.empty_like(hidden) if grads else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if grads else None
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        for rows in range(0, hidden.shape[0], CHUNK):
            chunk, target = inputs[rows : rows + CHUNK], targets[rows : rows + CHUNK].unsqueeze(1)
            valid = target != IGNORED
            target = target.where(valid, 0)
            logits = (chunk @ matrix.t()).to(wide)
            log_total = torch.logsumexp(logits, 1, keepdim=True)
            cross_entropy += ((log_total - logits.gather(1, target)) * valid).sum()
            if z_loss:
                squares += (log_total.square() * valid).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = logits.sub_(log_total).exp_()
                if z_loss:
                    grad.mul_(1 + 2 * z_loss * log_total)
                grad = grad.scatter_add_(1, target, grad.new_full((), -1.0).expand_as(target)).mul_(valid).to(dtype)
                grad_hidden[rows : rows + CHUNK] = grad @ matrix
                grad_weight += grad.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(cross_entropy, squares)
        return cross_entropy + z_loss * squares if z_loss else cross_entropy.clone(), cross_entropy, squares

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad.to(grad_hidden.dtype),
            (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )
