"""One optimizer step: forward and backward over this process's micro-batches, checks, clipping, the optimizer.

The loss of the step is (sum of nats over all processes and micro-batches) / (their number of valid targets). Each
backward therefore divides by the global count and multiplies by the number of processes, as DistributedDataParallel
averages gradients.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hybridlm.training.carrying import CarriedStates
from hybridlm.training.guard import DivergedError
from hybridlm.training.memory import MemoryStatistics
from hybridlm.training.sharding import accumulating, full


class Terms(NamedTuple):
    """Weights of what is added to the cross-entropy."""

    write_penalty: float = 0.0
    z_loss: float = 0.0


class StepLoss(NamedTuple):
    """Of one step, over all processes: scalars without a gradient."""

    cross_entropy: Tensor
    """Nats per valid target."""
    z_loss: Tensor | None
    """Mean of (log Z)^2 over the valid targets, not weighted; None where it has no weight."""


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


def micro_batch_loss(
    accelerator: Accelerator,
    model: nn.Module,
    batch: dict[str, Tensor],
    valid: int,
    parts: int,
    terms: Terms,
    past: Cache | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What one of `parts` micro-batches adds to the step's loss: all terms, with a gradient; then its cross-entropy and
    its z-loss alone (None without a weight). past: what the rows go on from, moved on; None: they begin anew."""
    inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
    extra: dict[str, Any] = {"z_loss": terms.z_loss} if terms.z_loss else {}
    if past is not None:
        extra["past_key_values"] = past
    out = model(**inputs, use_cache=False, keep_logits=False, num_items_in_batch=valid, **extra)
    loss = out.loss.float()
    if terms.write_penalty and (penalty := accelerator.unwrap_model(model).write_penalty()) is not None:
        loss = loss + terms.write_penalty * penalty / (parts * accelerator.num_processes)
    if not terms.z_loss:
        return loss, out.loss.detach().float(), None
    return loss, out.cross_entropy.float(), out.z_loss.float()


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    batches: list[dict[str, Tensor]],
    valid: int,
    terms: Terms = Terms(),  # noqa: B008  immutable
    memory: MemoryStatistics | None = None,
    carried: CarriedStates | None = None,
) -> StepLoss:
    """Gradients of the step's loss (and the other terms) into the parameters' `.grad`; returns the global loss.

    valid: number of valid targets over all processes. batches: this process's micro-batches, each (B, T) tensors.
    memory: takes what the memory cells counted. carried: what the rows go on from; takes what they leave.
    """
    world = accelerator.num_processes
    totals = torch.zeros(2, device=accelerator.device)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        past = None if carried is None else carried.cache(index)
        with nullcontext() if last else accumulating(accelerator, model):  # gradients travel between processes once
            with accelerator.autocast():  # a sharded model is not Accelerate's, which would see to it
                mine = batch, valid, len(batches), terms, past
                loss, cross_entropy, squares = micro_batch_loss(accelerator, model, *mine)
            totals[0] += cross_entropy
            if squares is not None:
                totals[1] += squares
            if memory is not None:  # before the backward, where checkpointing runs the forward again
                memory.add()
            if carried is not None and past is not None:
                carried.leave(index, past)
            accelerator.backward(loss * world)
    reduced: Tensor = accelerator.reduce(totals, reduction="sum")  # pyright: ignore[reportAssignmentType]
    return StepLoss(reduced[0], reduced[1] if terms.z_loss else None)


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
    norm = full(torch.nn.utils.get_total_norm(gradients))
    if not torch.isfinite(norm) and accelerator.scaler is None:
        for name, parameter in named:
            if parameter.grad is not None and not torch.isfinite(full(parameter.grad)).all():
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
    return f"The first tensor that is not finite is the {name} ({value})."
