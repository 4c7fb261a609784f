"""One optimizer step: forward and backward over this process's micro-batches, checks, clipping, the optimizer.

The loss of the step is (sum of nats over all processes and micro-batches) / (their number of valid targets). Each
backward therefore divides by the global count and multiplies by the number of processes, as DistributedDataParallel
averages gradients.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hybridlm.errors import UserError


class DivergedError(UserError):
    """Loss or gradients are not finite. Raised on every process, before the weights are touched."""


@dataclass
class StepResult:
    loss: float
    """Nats per valid target, over all processes."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    skipped: bool = False
    """fp16: the gradient overflowed, the weights were left as they are and the loss scale was lowered."""


def valid_targets(accelerator: Accelerator, batches: list[dict[str, Tensor]]) -> int:
    """Number of targets in the micro-batches of all processes; at least 1, so that a step without any has loss 0."""
    mine = sum(int((batch["shift_labels"] != -100).sum()) for batch in batches)
    if accelerator.num_processes > 1:
        everyone = accelerator.reduce(torch.tensor(mine, device=accelerator.device), reduction="sum")
        mine = int(everyone)  # pyright: ignore[reportArgumentType]
    return max(1, mine)


def backward(
    accelerator: Accelerator, model: nn.Module, batches: list[dict[str, Tensor]], valid: int, write_penalty: float = 0.0
) -> Tensor:
    """Gradients of the step's loss (and penalty) into the parameters' `.grad`; returns the global loss, a scalar.

    valid: number of valid targets over all processes. batches: this process's micro-batches, each (B, T) tensors.
    """
    world, plain = accelerator.num_processes, accelerator.unwrap_model(model)
    total = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with nullcontext() if last else accelerator.no_sync(model):  # gradients travel between processes once
            loss = model(**inputs, use_cache=False, keep_logits=False, num_items_in_batch=valid).loss.float()
            total += loss.detach()
            if write_penalty and (penalty := plain.write_penalty()) is not None:
                loss = loss + write_penalty * penalty / (len(batches) * world)
            accelerator.backward(loss * world)
    return accelerator.reduce(total, reduction="sum")  # pyright: ignore[reportReturnType]


def optimizer_step(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, loss: Tensor, clip_norm: float | None
) -> StepResult:
    """Checks that loss and gradients are finite, clips, and steps. Raises DivergedError that names the first tensor
    that is not.

    All processes see the same loss and gradients, so they agree on the outcome.
    """
    value = loss.item()
    if not torch.isfinite(loss):
        raise DivergedError(_diverged("loss", value))
    accelerator.unscale_gradients(optimizer)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.grad is not None]
    gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm) and accelerator.scaler is None:
        for name, parameter in named:
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise DivergedError(_diverged(f"gradient of {name.removeprefix('module.')}", "nan or inf"))
        raise DivergedError(_diverged("gradient norm", norm.item()))
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_([p for _, p in named], clip_norm, norm)
    optimizer.step()
    # Not Accelerate's `step_was_skipped`: fused AdamW is called on an overflow too, and leaves the weights by itself.
    skipped = accelerator.scaler is not None and not bool(torch.isfinite(norm))
    optimizer.zero_grad(set_to_none=True)
    return StepResult(value, norm.item(), skipped)


def _diverged(name: str, value: object) -> str:
    return (
        f"The first tensor that is not finite is the {name} ({value}); the weights were not changed. "
        "Lower optimizer.lr, lengthen the warm-up, lower optimizer.clip_norm, or use training.mixed_precision=bf16 "
        "or no. "
        "The newest checkpoint of the run is untouched."
    )
