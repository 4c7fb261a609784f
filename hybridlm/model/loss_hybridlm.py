"""Cross-entropy over the vocabulary without its logits: a chunk of tokens at a time, with its gradient made at once.

The logits of a batch are its largest tensor by far: written, read and written again they cost as much as several
layers. torch's own `linear_cross_entropy` does the same, but knows no autocast and adds the loss up in the dtype of its
inputs.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

CHUNK = 1024
IGNORED = -100


def without_logits(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
) -> Tensor:
    """The loss of `ForCausalLMLoss` on head(hidden), a scalar; hidden (B, T, D), labels and shift_labels (B, T)."""
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    targets = shift_labels.reshape(-1).to(hidden.device)
    dtype = torch.get_autocast_dtype(hidden.device.type) if _autocasts(hidden) else hidden.dtype
    total = _ChunkedLoss.apply(hidden.flatten(0, 1), head.weight, targets, dtype, torch.is_grad_enabled())
    count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)  # pyright: ignore[reportOptionalOperand, reportReturnType]


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
    """Sum over tokens of -log softmax(hidden weight^T)[target]; products in `dtype`, the rest in fp32 (fp64)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, grads):
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if grads else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if grads else None
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        for rows in range(0, hidden.shape[0], CHUNK):
            chunk, target = inputs[rows : rows + CHUNK], targets[rows : rows + CHUNK].unsqueeze(1)
            valid = target != IGNORED
            target = target.where(valid, 0)
            logits = (chunk @ matrix.t()).to(wide)
            log_total = torch.logsumexp(logits, 1, keepdim=True)
            total += ((log_total - logits.gather(1, target)) * valid).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = logits.sub_(log_total).exp_()
                grad = grad.scatter_add_(1, target, grad.new_full((), -1.0).expand_as(target)).mul_(valid).to(dtype)
                grad_hidden[rows : rows + CHUNK] = grad @ matrix
                grad_weight += grad.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), (grad_weight * grad).to(ctx.weight_dtype), None, None, None
