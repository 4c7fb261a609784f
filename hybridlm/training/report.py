"""The start-up report: what was chosen. "unknown" where it cannot be known."""

import time
from typing import Any

import torch
from accelerate import Accelerator

from hybridlm.data.shards import TokenShards
from hybridlm.training.arrangement import arrangement
from hybridlm.training.carrying import short_lanes, what_is_carried
from hybridlm.training.sections import PretrainConfig


def startup_report(
    accelerator: Accelerator,
    config: PretrainConfig,
    model: Any,
    train: TokenShards,
    groups: list[dict[str, Any]],
    steps: int,
    per_epoch: int,
) -> str:
    """Lines of `name: value`. per_epoch: training windows in one epoch."""
    total = sum(p.numel() for p in model.parameters())
    embeddings = {id(p): p.numel() for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    tokens = config.training.batch_size * config.data.sequence_length
    decays = ", ".join(f"{group['name']} {sum(p.numel() for p in group['params']):,}" for group in groups)
    lines = {
        "model": f"{model.config.pattern}, width {model.config.hidden_size}, vocabulary {model.config.vocab_size:,}",
        "parameters": f"{total:,} ({total - sum(embeddings.values()):,} without embeddings; {decays})",
        "data": f"{train.n_tokens:,} training tokens, {train.n_documents:,} documents, fingerprint "
        f"{train.fingerprint[:16]}",
        "run": f"{steps:,} steps x {tokens:,} tokens = {steps * tokens:,} tokens, "
        f"{steps * config.training.batch_size / per_epoch:.2f} epochs",
        "state": what_is_carried(config),
        "warning": short_lanes(config, per_epoch, train.n_tokens / train.n_documents),
        "optimizer": _optimizer(config),
        "precision": _precision(accelerator),
        "device": f"{_device(accelerator.device)}, {accelerator.num_processes} process(es), "
        f"{torch.get_num_threads()} thread(s) each",
        "parallel": arrangement(config, accelerator.num_processes),
        "scan": str(getattr(model, "scan_path", None) or "unknown"),
        "folder": str(config.run.path),
    }
    return "\n".join(f"{name + ':':12}{value}" for name, value in lines.items() if value)


def _optimizer(config: PretrainConfig) -> str:
    """The optimizer, and what of the training step was asked for beside it."""
    words = f"AdamW, {config.schedule.kind} schedule"
    if config.optimizer.muon is not None:
        words = f"Muon for the hidden matrices, AdamW for the rest, {config.schedule.kind} schedule"
    if config.training.ema_decay is not None:
        words += f"; moving average of the weights, decay {config.training.ema_decay}"
    return words + ("; torch.compile" if config.training.compile else "")


def _precision(accelerator: Accelerator) -> str:
    if accelerator.mixed_precision == "no":
        return "fp32"
    words = f"{accelerator.mixed_precision} products, fp32 weights and recurrences"
    if accelerator.device.type == "cpu":
        times = _products_take(torch.bfloat16)
        if times > 1.5:
            words += (
                f"; this processor takes {times:.0f} times as long for them as in fp32: training.mixed_precision=no is "
                "faster here"
            )
    return words


def _products_take(dtype: torch.dtype, side: int = 256) -> float:
    """Time of a matrix product on the CPU in this dtype, over that in fp32: many processors have bf16 in software
    alone."""
    seconds = {}
    for kind in (torch.float32, dtype):
        x = torch.ones(side, side, dtype=kind)
        tries = []
        for _ in range(4):  # the first one prepares
            begun = time.perf_counter()
            torch.mm(x, x)
            tries.append(time.perf_counter() - begun)
        seconds[kind] = min(tries[1:])
    return seconds[dtype] / seconds[torch.float32]


def _device(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"  # torch numbers it below a launcher, where there is one all the same
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
