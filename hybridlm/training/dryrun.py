"""What a recipe would do, without doing it: sizes, steps, operations, memory, time, disk, and the paths chosen.

Nothing is prepared or downloaded, no folder is made, no weights are allocated. What cannot be known here is None, and
"unknown" in the text.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.loader import windows_per_epoch
from hybridlm.data.mixture import epoch_tokens
from hybridlm.data.prepare import source_weights
from hybridlm.data.shards import MANIFEST, TokenShards
from hybridlm.data.sources import check_paths
from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.errors import UserError
from hybridlm.files import expanded
from hybridlm.model.cell_hybridlm import RECURRENT_LAYER
from hybridlm.model.fused_hybridlm import kernels_for
from hybridlm.model.scan_hybridlm import scan_path
from hybridlm.safe_loading import FAULTS, NO_CODE
from hybridlm.training.beforehand import initial_weights, reads_sources, run_state
from hybridlm.training.flops import Flops, flops_per_token
from hybridlm.training.initial import is_local
from hybridlm.training.launching import check_launch
from hybridlm.training.memory_estimate import MemoryEstimate, estimate_memory, optimizer_state
from hybridlm.training.memory_trace import bytes_of
from hybridlm.training.parallel import data_places
from hybridlm.training.peaks import device_peak
from hybridlm.training.resume import check_run_folder
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import check_trackers, cpu_threads
from hybridlm.training.setup import lanes, micro_batch_size, tokens_per_step, total_steps
from hybridlm.training.sharding import refuse_unshardable

MOMENT = 0.3
"""Seconds for which the rate of matrix products is measured."""


@dataclass
class LayerSize:
    """Parameters of a layer."""

    block: str
    mixer: int
    mlp: int
    norms: int


@dataclass
class DataFacts:
    """What is known of the data before it is prepared."""

    vocab_size: int
    source: str
    """Where that number comes from."""
    tokens: int | None
    """In the training split; None until the data is prepared, as are the next two."""
    documents: int | None
    epoch_tokens: int | None
    """Tokens of an epoch, which the weights of the sources decide."""
    fingerprint: str | None = None
    """Of the data that the run would read; None where it may be made, or made anew."""


@dataclass
class DryRun:
    """What `pretrain` would do. None: unknown."""

    config: PretrainConfig
    model_config: HybridLMConfig
    layers: list[LayerSize]
    embedding: int
    """Parameters of the embedding, and of an output projection that is not tied to it."""
    parameters: int
    """All of them, the embedding included."""
    data: DataFacts
    device: str
    """cpu, or the name of the GPU; cuda where it is not here."""
    device_type: str
    processes: int
    micro_batch: int
    steps: int | None
    epochs: float | None
    flops: Flops
    memory: MemoryEstimate
    device_memory: int | None
    """Bytes that the device has."""
    rate: float | None
    """Operations per second of matrix products, over all processes."""
    rate_from: str
    """How that was got, or why not."""
    checkpoint_bytes: int
    """Of one checkpoint."""
    disk_needed: int
    """Bytes of all checkpoints that exist at once, of the best and of the final model."""
    disk_free: int
    paths: dict[str, str]
    initial: str
    """The weights that it would begin with."""
    run_state: str
    """What is in the run folder."""
    peak: float | None
    """FLOP/s of the device at best."""

    @property
    def tokens_per_step(self) -> int:
        return tokens_per_step(self.config)

    @property
    def per_epoch(self) -> int | None:
        """Training sequences in an epoch."""
        return _per_epoch(self.config, self.data)

    @property
    def total_flops(self) -> int | None:
        return None if self.steps is None else self.flops.training * self.steps * self.tokens_per_step

    @property
    def least_seconds(self) -> float | None:
        """At `rate`, if nothing but matrix products took time."""
        return None if self.rate is None or self.total_flops is None else self.total_flops / self.rate


def dry_run(config: PretrainConfig, *, device: str | None = None, processes: int | None = None) -> DryRun:
    """Looks at what `pretrain(config)` would do here, or on `device` ("cpu", "cuda") with so many processes.

    processes None: those of the launcher, or one. Raises UserError for what `pretrain` would refuse, as far as that can
    be told without doing it.
    """
    if processes is None:
        check_launch()
    place = _device(device)
    count = processes or int(os.environ.get("WORLD_SIZE", 1))
    micro = micro_batch_size(config, count)
    _refuse(config, place, count)
    data = _data(config)
    in_folder, initial = run_state(config, data.fingerprint), initial_weights(config)
    keywords: dict[str, Any] = {"max_position_embeddings": max(2048, config.data.sequence_length)}
    keywords |= config.model | {"vocab_size": data.vocab_size}
    model_config = HybridLMConfig(**keywords)
    with torch.device("meta"):
        model = HybridLMForCausalLM(model_config)
    steps, epochs = _length(config, data)
    rate, rate_from = _rate(config, place, count, launched=processes is None and "WORLD_SIZE" in os.environ)
    checkpoint = bytes_of(model.parameters()) + bytes_of(model.buffers())
    with torch.device("meta"):
        state = bytes_of(optimizer_state(config, model))
    average = checkpoint if config.training.ema_decay is not None else 0
    memory = estimate_memory(config, model_config, micro, device_type=place.type, processes=count)
    saved = checkpoint + state + average + memory.carried * data_places(config, count)
    kept = _checkpoints_at_once(config, steps) * saved
    here = place if _is_here(place) else None
    return DryRun(
        config=config,
        model_config=model_config,
        layers=[
            _layer(block, layer) for block, layer in zip(model_config.block_types, model.model.layers, strict=True)
        ],
        embedding=sum({id(w): w.numel() for w in (model.model.embed_tokens.weight, model.lm_head.weight)}.values()),
        parameters=sum(p.numel() for p in model.parameters()),
        data=data,
        device=torch.cuda.get_device_name(here) if here is not None and here.type == "cuda" else place.type,
        device_type=place.type,
        processes=count,
        micro_batch=micro,
        steps=steps,
        epochs=epochs,
        flops=flops_per_token(model, config.data.sequence_length),
        memory=memory,
        device_memory=None if here is None else _device_memory(here),
        rate=rate,
        rate_from=rate_from,
        checkpoint_bytes=saved,
        disk_needed=kept + 2 * checkpoint + average,  # the best model and the last one; its average
        disk_free=shutil.disk_usage(_nearest(config.run.path)).free,
        paths=_paths(place, config, model, here is not None),
        initial=initial,
        run_state=in_folder,
        peak=None if here is None else device_peak(here, config.training.mixed_precision),
    )


def _device(name: str | None) -> torch.device:
    """The device that Accelerate would take, or the one that is asked about."""
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else torch.device(found.type)
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name!r}: must be cpu or cuda.")
    return torch.device(name)


def _is_here(device: torch.device) -> bool:
    return device.type == "cpu" or (torch.accelerator.is_available() and _device(None).type == device.type)


def _refuse(config: PretrainConfig, device: torch.device, processes: int) -> None:
    """What `pretrain` refuses before it reads anything."""
    check_trackers(config.logging.trackers)
    if config.training.mixed_precision == "fp16" and device.type == "cpu":
        raise UserError(
            "training.mixed_precision='fp16' does not work here: fp16 needs a GPU. Use 'no' (any device) or 'bf16' "
            "(CPU, recent GPUs)."
        )
    refuse_unshardable(config, processes)
    check_run_folder(config.run.path)


def _data(config: PretrainConfig) -> DataFacts:
    prepare = config.data.prepare
    if prepare is not None and reads_sources(config):
        check_paths(prepare.sources)
    folder = expanded((config.data.folder or "") if prepare is None else prepare.output)
    if prepare is None or (folder / MANIFEST).is_file():
        shards = TokenShards(folder, "train")  # which says what to do where it is not there
        weights = shards.weights if prepare is None else source_weights(prepare)
        fingerprint = None
        if len(weights) != len(shards.weights):  # made of other sources: what pretraining says of it is no matter here
            weights = shards.weights
        elif prepare is None or not prepare.overwrite:
            fingerprint = TokenShards(folder, "train", weights).fingerprint
        epoch = epoch_tokens(shards.lengths, shards.source_edges, weights)
        facts = shards.n_tokens, shards.n_documents, epoch, fingerprint
        return DataFacts(shards.vocab_size, f"the prepared data in {folder}", *facts)
    unknown = None, None, None
    if prepare.tokenizer is None:
        assert prepare.vocab_size is not None
        return DataFacts(prepare.vocab_size, "data.prepare.vocab_size, unless the text is too short", *unknown)
    if is_local(prepare.tokenizer):  # otherwise the Hub may have it
        return DataFacts(len(load_tokenizer(prepare.tokenizer)), f"the tokenizer {prepare.tokenizer}", *unknown)
    try:
        size = len(AutoTokenizer.from_pretrained(prepare.tokenizer, local_files_only=True, **NO_CODE))
        return DataFacts(size, f"the tokenizer {prepare.tokenizer}", *unknown)
    except FAULTS:
        size = HybridLMConfig.vocab_size
        return DataFacts(size, f"assumed: the tokenizer {prepare.tokenizer} is not on this machine", *unknown)


def _per_epoch(config: PretrainConfig, data: DataFacts) -> int | None:
    if data.epoch_tokens is None:
        return None
    return windows_per_epoch(data.epoch_tokens, config.data.sequence_length, lanes(config))


def _length(config: PretrainConfig, data: DataFacts) -> tuple[int | None, float | None]:
    """Steps, and epochs."""
    per_epoch = _per_epoch(config, data)
    if per_epoch is None:
        return (None if config.training.epochs is not None else total_steps(config, 0)), config.training.epochs
    steps = total_steps(config, per_epoch)
    return steps, steps * config.training.batch_size / per_epoch


def _layer(block: str, layer: Any) -> LayerSize:
    norms = sum(p.numel() for norm in (layer.mixer_norm, layer.mlp_norm) if norm is not None for p in norm.parameters())
    mlp = 0 if layer.mlp is None else sum(p.numel() for p in layer.mlp.parameters())
    return LayerSize(block, sum(p.numel() for p in layer.mixer.parameters()), mlp, norms)


def _rate(config: PretrainConfig, device: torch.device, processes: int, launched: bool) -> tuple[float | None, str]:
    """Matrix products per second over all processes, and how it was got."""
    if not _is_here(device):
        return None, f"there is no {device.type} device here to measure"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.training.mixed_precision, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(cpu_threads() if device.type == "cpu" else threads)
        one = _products(device, dtype)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
    name = str(dtype).removeprefix("torch.")
    words = f"products of {name} matrices measured here for a moment: {one / 1e9:,.0f} GFLOP/s"
    if device.type == "cpu":
        words += f" with {used} thread(s)"
    shared = device.type == "cpu" and not launched  # processes of one machine share what was measured
    return one * (1 if shared else processes), words


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second: the fastest of as many products as fit into MOMENT."""
    side = 4096 if device.type == "cuda" else 1024
    x, y = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, end = float("inf"), time.perf_counter() + MOMENT
    while time.perf_counter() < end or best == float("inf"):
        wait()
        begun = time.perf_counter()
        torch.mm(x, y)
        wait()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def _checkpoints_at_once(config: PretrainConfig, steps: int | None) -> int:
    """How many are on the disk while a further one is written; one that an interruption leaves, at least."""
    choice = config.checkpoint
    if not choice.every:
        return 1
    if steps is None:
        return choice.keep + 1
    for_good = steps // choice.keep_every if choice.keep_every else 0
    return min(choice.keep + 1 + for_good, max(1, -(-steps // choice.every)))


def _device_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _nearest(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _paths(device: torch.device, config: PretrainConfig, model: Any, here: bool) -> dict[str, str]:
    paths = {}
    if RECURRENT_LAYER in model.config.layer_types:
        paths["scan"] = scan_path(device, torch.float32) if here else f"unknown: there is no {device.type} device here"
    if model.model.rotary_emb is not None:
        paths["attention"] = str(model.config._attn_implementation)
    dtype = {"bf16": torch.bfloat16}.get(config.training.mixed_precision, torch.float32)
    fused = device.type == "cpu" and kernels_for(torch.empty(1, 1, 1, dtype=dtype)) is not None
    paths["norms and gates"] = "compiled C" if fused else "PyTorch"
    paths["loss"] = "in chunks, without the logits"
    if config.training.compile:
        paths["compiled"] = "by torch.compile; memory is that of eager steps"
    return paths
