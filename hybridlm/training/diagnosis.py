"""Why a step is not finite: the weights themselves, or the first module of the forward or backward that made it so.

The step's own micro-batches run again, with the random numbers, precision and epsilon that they had: first forward
alone, then with a backward whose gradients go nowhere (those of a sharded model are thrown away, with what the step had
left). Weights and random states stay as they are. Every process searches its own micro-batches, all of them even behind
a finding, since the others may need its part of each; all processes end with the same finding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hybridlm.training.carrying import CarriedStates
from hybridlm.training.guard import DivergedError
from hybridlm.training.probes import LOSS, BackwardProbe, Blame, ForwardProbe, Numbers, numbers
from hybridlm.training.random_state import RandomState, kept_random_state
from hybridlm.training.sharding import give_back, is_sharded, local
from hybridlm.training.step import Terms, micro_batch_loss


@dataclass
class FailedStep:
    """What a step was made of."""

    batches: list[dict[str, Tensor]]
    """This process's micro-batches."""
    valid: int
    """Valid targets over all processes."""
    terms: Terms
    random: RandomState
    """Before the first micro-batch."""
    carried: CarriedStates | None = None
    """What its rows go on from."""


@dataclass
class Finding:
    """The first tensor that is not finite."""

    kind: str
    """parameter, forward, loss, or backward."""
    tensor: str
    """Its name."""
    text: str
    """What was seen, as a sentence without its stop."""
    seen: dict[str, Any]
    """The same as numbers."""
    micro_batch: int | None = None
    """From 0."""
    process: int = 0


Attempt = Callable[[Accelerator, Any, int, FailedStep], Finding | None]
"""Of one micro-batch, by its index."""

KINDS = ("parameter", "forward", "loss", "backward")
"""In the order of cause and effect."""


def find_cause(accelerator: Accelerator, model: Any, step: FailedStep) -> Finding | None:
    """Called by every process; the finding of the one where it happened first. None where nothing is found again.

    model: unwrapped. Raises DivergedError where the search breaks off in one of several processes that compute
    together: the others wait for its part of a forward, and end with it.
    """
    step_again = partial(_search, accelerator, model, step)
    for search in (partial(_bad_parameter, model), partial(step_again, _forward), partial(step_again, _backward)):
        try:
            mine = search()
        except Exception as error:  # such as no memory for a second pass: the stop itself must still be told
            if is_sharded(model) or model.sequence_ranks is not None:
                raise DivergedError(
                    "Stopped before the weights were changed: the loss or a gradient is not finite, and the search for "
                    f"where that began broke off on process {accelerator.process_index}: {error}"
                ) from error
            accelerator.print(f"The search for the tensor broke off: {error}")
            mine = None
        if mine is not None:
            mine.process = accelerator.process_index
        everyone = [finding for finding in gather_object([mine]) if finding is not None]
        if everyone:
            return min(everyone, key=_order)
    return None


def _order(found: Finding) -> tuple[int, int, int]:
    """First the cause: where processes share sequences, what is not finite goes on to the next part in the forward, to
    the one before in the backward."""
    process = -found.process if found.kind == "backward" else found.process
    return KINDS.index(found.kind), found.micro_batch or 0, process


def _bad_parameter(model: Any) -> Finding | None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        mine = local(tensor)
        if mine.is_floating_point() and not mine.isfinite().all():
            found = numbers([mine])
            where = "" if mine is tensor else " in the part of this process"
            text = f"the weight {name} itself ({_words(found)}{where})"
            return Finding("parameter", name, text, {"bad": found.asdict()})
    return None


def _search(accelerator: Accelerator, model: Any, step: FailedStep, attempt: Attempt) -> Finding | None:
    first = None
    with _as_before(accelerator, step):
        for index in range(len(step.batches)):
            found = attempt(accelerator, model, index, step)
            if found is not None and first is None:
                found.micro_batch, first = index, found
    give_back(model)
    return first


@contextmanager
def _as_before(accelerator: Accelerator, step: FailedStep) -> Iterator[None]:
    """The random numbers of the step inside; those of now afterwards. Compiled models run as they are written."""
    with kept_random_state(accelerator.device), torch.compiler.set_stance("force_eager"):
        step.random.restore()
        yield


def _forward(accelerator: Accelerator, model: Any, index: int, step: FailedStep) -> Finding | None:
    probe = ForwardProbe(model)
    with torch.no_grad(), probe.watching():
        loss, cross_entropy, squares = _loss(accelerator, model, index, step)
    if probe.blame is not None:
        what = f"the output of {_place(model, probe.blame)} ({_words(probe.blame.bad)}), whose inputs are finite"
        return _finding("forward", probe.blame, what + _between(probe.blame.given))
    if loss.isfinite():
        return None
    assert probe.last is not None
    blame = Blame(LOSS, numbers([loss]), probe.last)
    if cross_entropy.isfinite() and (squares is None or squares.isfinite()):
        return _finding("loss", blame, "the write penalty, where the rest of the loss is finite", "write_penalty")
    if cross_entropy.isfinite():
        what = f"the z-loss, computed from logits of the head {_head(model)}, where the cross-entropy is finite"
        return _finding("loss", blame, what, "z_loss")
    what = f"the loss, computed by the head {_head(model)} from hidden states that are finite"
    return _finding("loss", blame, what + _between(probe.last), "loss")


def _backward(accelerator: Accelerator, model: Any, index: int, step: FailedStep) -> Finding | None:
    probe = BackwardProbe(model)
    with probe.watching():
        loss, *_ = _loss(accelerator, model, index, step)
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if is_sharded(model):  # whose graph begins at weights that it gathers and gives back by itself
            (loss * accelerator.num_processes).backward()
            for weight in weights:
                weight.grad = None
        else:  # not into `.grad`, and past what DistributedDataParallel hangs there
            torch.autograd.grad(loss * accelerator.num_processes * scale, weights, allow_unused=True)
    blame = probe.blame()
    if blame is None:
        return None
    given = f"the gradient that reaches it is finite{_between(blame.given)}" if blame.given.values else "the loss is"
    if blame.parameter is not None:
        what = f"the gradient of the weight {blame.parameter} ({_words(blame.bad)})"
        return _finding("backward", blame, f"{what}; {given}", blame.parameter)
    what = f"a gradient that {_place(model, blame)} hands back ({_words(blame.bad)})"
    return _finding("backward", blame, f"{what}; {given}")


def _loss(accelerator: Accelerator, model: Any, index: int, step: FailedStep) -> Any:
    with accelerator.autocast():
        past = None if step.carried is None else step.carried.cache(index)
        mine = step.batches[index], step.valid, len(step.batches), step.terms, past
        return micro_batch_loss(accelerator, model, *mine)


def _finding(kind: str, blame: Blame, text: str, tensor: str | None = None) -> Finding:
    seen = {"bad": blame.bad.asdict(), "given": blame.given.asdict()}
    return Finding(kind, tensor or blame.module or "loss", text, seen)


def _place(model: Any, blame: Blame) -> str:
    if blame.module == LOSS:
        return f"the loss (head: {_head(model)})"
    kind = type(model.get_submodule(blame.module)).__name__.removeprefix("FSDP")  # as torch renames what it shards
    return f"{blame.module} ({kind})"


def _head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "head")


def _words(found: Numbers) -> str:
    kinds = [f"{count:,} {name}" for name, count in (("nan", found.nan), ("infinite", found.infinite)) if count]
    return f"{found.dtype}, {' and '.join(kinds)} of {found.values:,} values"


def _between(found: Numbers) -> str:
    return f", from {found.low:.3g} to {found.high:.3g}" if found.low is not None else ""
