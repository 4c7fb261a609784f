"""Memory of training, before anything is allocated: the model's own code, run on shapes alone.

A training step and a validation run on torch's fake tensors, and every tensor is counted while it lives
(`memory_trace`). So a new mixer, another precision and gradient checkpointing are estimated by what they do.

Of several processes each holds its part: with `parallel.kind: fsdp` of weights, gradients, optimizer state and average,
beside what it gathers of the others' (`memory_sharded`); with `parallel.sequence` of the tokens.

The estimate is of what is in use. Documents are taken to be packed, as they mostly are. Left out: the Python process
itself, what a library takes for itself during a call (workspaces of matrix products), the CUDA context, and the holes
between blocks: on a CPU, glibc's heap keeps many (`HELD`).
"""

import math
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.fused_hybridlm import RMSNorm, kernels_for
from hybridlm.model.shapes_hybridlm import shapes_alone
from hybridlm.training.arrangement import sharded_over
from hybridlm.training.memory_sharded import Gathered, gather
from hybridlm.training.memory_trace import MemoryTrace, bytes_of
from hybridlm.training.optimizer import parameter_groups
from hybridlm.training.parallel import data_places
from hybridlm.training.sections import PretrainConfig

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOOPED = frozenset({"gru", "lstm"})
"""Cells that loop over packed tokens in Python, which takes long to trace: as many tokens in SHORT sequences, of which
there are more, stand for theirs."""
SHORT = 64
HELD = 2.4
"""What a process on a CPU held at most, over the estimate, in runs of `scripts/bench_memory.py`."""
LOSS_ALONE = {"use_cache": False, "keep_logits": False, "num_items_in_batch": 1}
"""Keywords of the forward, as training and validation call it."""


@dataclass
class MemoryEstimate:
    """Bytes on one device of one process, where the most are in use."""

    parts: dict[str, int]
    """weights, optimizer (its state), average (EMA of the weights), buckets (in which processes exchange gradients),
    carried (data.carry_state: what the rows go on from, and what they leave), gathered (fsdp: weights of other
    processes, and whole gradients on their way to them), gradients, activations (kept for the backward, with the copies
    of weights in mixed precision), loss (a chunk of logits and what stays of it), temporary; as many as are in use at
    `moment`."""
    moment: str
    """training step, or validation: which needs more."""
    activations: int
    """What a forward keeps for its backward, at its end."""
    carried: int
    """What the rows of one process go on from (data.carry_state)."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self.parts.values())


def estimate_memory(
    config: PretrainConfig, model_config: HybridLMConfig, micro_batch: int, *, device_type: str, processes: int
) -> MemoryEstimate:
    """The most that training and validation as in `config` have in use; micro_batch: sequences in one forward."""
    for dtype in {torch.float32, DTYPES[config.training.mixed_precision]}:
        kernels_for(torch.empty(1, 1, 1, dtype=dtype))  # which check themselves on first use, with values
    with ExitStack() as stack:
        stack.enter_context(shapes_alone(kernels=device_type == "cpu"))
        stack.enter_context(FakeTensorMode())
        model = _model(config, model_config, device_type)
        trace = stack.enter_context(MemoryTrace(device_type))
        part, weights = sharded_over(config, processes), [*model.parameters(), *model.buffers()]
        trace.assign(weights, "weights", 1 / part)
        carried = _carried(config, model, processes)
        beside = _beside(config, model, trace, processes, carried)
        aside = gather(config, model, trace) if part > 1 else Gathered(0, 0)
        run = _Run(config, model, trace, micro_batch, processes)
        trace.forget()
        kept = run.backward()
        model.zero_grad(set_to_none=True)
        moments = {"training step": trace.most + Counter(gathered=aside.training)}
        trace.forget()
        run.validate()
        moments["validation"] = trace.most + Counter(gathered=aside.forward)
        del beside, weights
    moment = max(moments, key=lambda name: moments[name].total())
    parts = {part: size for part, size in moments[moment].items() if size}
    return MemoryEstimate(parts, moment, kept["activations"], carried)


def optimizer_state(config: PretrainConfig, model: Any) -> list[Tensor]:
    """Tensors like those that the optimizer keeps: two averages of each parameter for AdamW, one of each matrix that
    Muon trains."""
    groups = parameter_groups(model, 0.0, muon=0.0 if config.optimizer.kind == "muon" else None)
    return [
        torch.zeros_like(parameter, requires_grad=False)
        for group in groups
        for parameter in group["params"]
        for _ in range(1 if group["name"] == "muon" else 2)
    ]


def _beside(config: PretrainConfig, model: Any, trace: MemoryTrace, processes: int, carried: int) -> list[Tensor]:
    """What exists for the rest of the run from the first optimizer step on."""
    part = sharded_over(config, processes)
    buckets = processes > 1 and config.parallel.kind == "ddp"
    copies = {"average": config.training.ema_decay is not None, "buckets": buckets}
    found = optimizer_state(config, model)
    trace.assign(found, "optimizer", 1 / part)
    if carried:
        found.append(torch.empty(2 * carried, dtype=torch.uint8))
        trace.assign(found[-1:], "carried")
    for purpose, there in copies.items():
        if there:
            more = [torch.zeros_like(parameter, requires_grad=False) for parameter in model.parameters()]
            trace.assign(more, purpose, 1 / part)
            found += more
    return found


def _carried(config: PretrainConfig, model: Any, processes: int) -> int:
    """Bytes of the states and convolution windows that the rows of one process go on from."""
    if not config.data.carry_state:
        return 0
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), _precision(config):
        model(torch.zeros(1, 2, dtype=torch.long), past_key_values=cache)
    rows = config.training.batch_size // data_places(config, processes)
    return rows * sum(bytes_of(layer._tensors()) for layer in cache.layers)  # pyright: ignore[reportAttributeAccessIssue]


def _precision(config: PretrainConfig) -> Any:
    # fp16 stands as bf16, which a CPU has too; the sizes are the same.
    if config.training.mixed_precision == "no":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def _model(config: PretrainConfig, model_config: HybridLMConfig, device_type: str) -> Any:
    model = HybridLMForCausalLM(model_config).train()
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if device_type == "cuda":
        # Fake tensors are on the CPU, since torch without CUDA knows no others with gradients. CUDA has an RMS norm of
        # its own, which keeps less than the CPU's chain of operations.
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.forward = lambda x, weight=module.weight: _FusedNorm.apply(x, weight)
    return model


class _Run:
    """What a run does with its model, on shapes; the trace is told what each part is for."""

    def __init__(self, config: PretrainConfig, model: Any, trace: MemoryTrace, micro_batch: int, processes: int):
        self.config, self.model, self.trace = config, model, trace
        places = data_places(config, processes)
        self.rows, self.several = micro_batch, config.training.batch_size > micro_batch * places
        self.length = config.data.sequence_length * places // processes
        # Of several micro-batches, all but the last leave whole gradients in each process.
        self.part = 1 if self.several else sharded_over(config, processes)
        self.kept: Counter[str] = Counter()
        model.model.register_forward_hook(self._loss_begins)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._gathered)

    def backward(self) -> Counter[str]:
        """The gradients of a step in which memory units are counted, if any is; what was in use between the layers and
        the loss."""
        counts = self.config.logging.memory_every > 0
        self.model.record_writes(self.config.write_penalty > 0, counts=counts)
        if self.several:  # the gradients of one micro-batch are there while the next runs, which is the one to look at
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
                    self._gathered(parameter)
        self.trace.purpose = "activations"
        extra: dict[str, Any] = {"z_loss": self.config.training.z_loss} if self.config.training.z_loss else {}
        if self.config.data.carry_state:
            extra["past_key_values"] = DynamicCache(config=self.model.config)
        with _precision(self.config):
            loss = self.model(**self._batch(self.rows), **LOSS_ALONE, **extra).loss
        if self.config.write_penalty and (penalty := self.model.write_penalty()) is not None:
            loss = loss + self.config.write_penalty * penalty
        self.trace.purpose = "temporary"
        loss.backward()
        return self.kept

    def validate(self) -> None:
        """A validation batch."""
        self.model.record_writes(self.config.write_penalty > 0)
        self.model.eval()
        self.trace.purpose = "temporary"
        with torch.no_grad(), _precision(self.config):
            self.model(**self._batch(self.config.validation.batch_size), **LOSS_ALONE)
        self.model.train()

    def _batch(self, rows: int) -> dict[str, Tensor]:
        """A micro-batch as the loader makes it; of cells in LOOPED the same tokens in shorter rows."""
        length = self.length
        looped = LOOPED & {name for block in self.model.config.block_types for name in block.split("+")}
        if looped and length > SHORT:
            rows, length = math.ceil(rows * length / SHORT), SHORT
        names = "input_ids", "position_ids", "shift_labels"
        return {name: torch.zeros(rows, length, dtype=torch.long) for name in names}

    def _loss_begins(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.kept = Counter(self.trace.now)
        self.trace.purpose = "loss"

    def _gathered(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            fp32 = 4 / parameter.grad.element_size()  # whatever the products have, it is added up in fp32
            self.trace.assign([parameter.grad], "gradients", fp32 / self.part)


class _FusedNorm(torch.autograd.Function):
    """CUDA's RMS norm: keeps its input and one number for each token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
