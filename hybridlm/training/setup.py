"""What a run is made of: data, model, optimizer, number of steps."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.distributed.device_mesh import DeviceMesh

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.loader import Windows
from hybridlm.data.prepare import source_weights
from hybridlm.data.shards import TokenShards
from hybridlm.errors import UserError
from hybridlm.safe_loading import FAULTS, SAFETENSORS, check_weights
from hybridlm.training.beforehand import refuse_start
from hybridlm.training.ema import WeightAverage
from hybridlm.training.initial import load_initial
from hybridlm.training.known_data import prepared_folder
from hybridlm.training.optimizer import build_optimizer
from hybridlm.training.parallel import data_places
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import on_main
from hybridlm.training.sharding import shard
from hybridlm.training.state import quiet


@dataclass
class RunData:
    """The prepared data, opened."""

    train: TokenShards
    """Training split."""
    windows: Windows
    """Training sequences, in the run's order."""
    validation: Windows | None
    """Validation sequences in natural order, text targets only; None where the data has no validation split."""
    tokenizer: Any
    """The tokenizer that the data was made with."""


def open_data(config: PretrainConfig, accelerator: Accelerator) -> RunData:
    """Prepares the data if need be (on the main process), checks and opens it. Raises UserError, before it begins also
    for what the run would refuse behind it."""
    data = config.data
    on_main(accelerator, lambda: refuse_start(config))
    folder = Path(on_main(accelerator, lambda: _data_folder(config, accelerator)))
    weights = None if data.prepare is None else source_weights(data.prepare)
    train, validation = TokenShards(folder, "train", weights), TokenShards(folder, "validation", weights)
    if data.verify:
        on_main(accelerator, lambda: _verify(train, validation))
    windows = Windows(
        train, data.sequence_length, config.training.seed, lanes=lanes(config), restart=data.carry_restart
    )
    held_out = None
    if validation.n_tokens:
        held_out = Windows(validation, data.sequence_length, seed=0, shuffle=False, text_only=True)
    return RunData(train, windows, held_out, train.tokenizer)


def _verify(*splits: TokenShards) -> None:
    for split in splits:
        split.verify()


def _data_folder(config: PretrainConfig, accelerator: Accelerator) -> str:
    if config.data.prepare is not None:
        return str(prepared_folder(config, accelerator.print))
    assert config.data.folder is not None
    return config.data.folder


def micro_batch_size(config: PretrainConfig, processes: int) -> int:
    """Sequences in one forward of one process. Raises UserError where a step cannot be dealt out evenly."""
    training, places = config.training, data_places(config, processes)
    micro = training.micro_batch_size or max(1, training.batch_size // places)
    if training.batch_size % (micro * places):
        shared = "" if places == processes else f" / {processes // places} that share each sequence (parallel.sequence)"
        factors = f"{processes} processes{shared}"
        own = "" if training.micro_batch_size is None else f" x {micro} (training.micro_batch_size)"
        raise UserError(
            f"training.batch_size={training.batch_size} cannot be dealt out evenly: it must be a multiple of "
            f"{factors}{own}. Change it, or the launch."
        )
    return micro


def total_steps(config: PretrainConfig, per_epoch: int) -> int:
    """Optimizer steps of the run; `per_epoch` training sequences make an epoch."""
    training = config.training
    if training.steps is not None:
        return training.steps
    if training.tokens is not None:
        return math.ceil(training.tokens / tokens_per_step(config))
    assert training.epochs is not None
    return math.ceil(training.epochs * per_epoch / training.batch_size)


def lanes(config: PretrainConfig) -> int | None:
    """Rows of a batch that go on in the next one; None where windows come in a drawn order."""
    return config.training.batch_size if config.data.carry_state else None


def tokens_per_step(config: PretrainConfig) -> int:
    """Tokens that one optimizer step reads, over all processes."""
    return config.training.batch_size * config.data.sequence_length


def build_model(config: PretrainConfig, data: RunData, checkpoint: Path | None) -> HybridLMForCausalLM:
    """A new model from `training.seed` or `training.init_from`, or the one in `checkpoint`; in fp32, in training
    mode."""
    set_seed(config.training.seed)
    model = HybridLMForCausalLM(HybridLMConfig(**model_keywords(config, data)))
    if checkpoint is not None:
        # Read beside and copied: `from_pretrained` makes new parameters, without the marks that groups are made by.
        model.load_state_dict(_read_model(checkpoint).state_dict())
    elif config.training.init_from is not None:
        load_initial(model, data.tokenizer, config.training.init_from)
    model.train()
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.record_writes(config.write_penalty > 0)
    return model


def prepare(
    config: PretrainConfig, accelerator: Accelerator, plain: HybridLMForCausalLM, mesh: DeviceMesh | None
) -> tuple[WeightAverage | None, Any, Any]:
    """The average of the weights (None without one), the model as steps call it, its optimizer. mesh: how the
    processes hold the weights; None: each holds all of them.

    A sharded model is not prepared by Accelerate, which would keep copies of it alike.
    """
    decay, device = config.training.ema_decay, accelerator.device
    if mesh is not None:
        device = torch.device("cpu")  # what is dealt out goes to the device a part at a time
    average = WeightAverage(plain, decay, device) if decay is not None else None
    if mesh is None:
        return average, *accelerator.prepare(plain, build_optimizer(plain, config.optimizer))
    shard(plain, mesh, config)
    if average is not None:
        shard(average.model, mesh, config)
    return average, plain, accelerator.prepare(build_optimizer(plain, config.optimizer))


def _read_model(checkpoint: Path) -> HybridLMForCausalLM:
    check_weights(checkpoint, f"The model in {checkpoint}")
    try:
        with quiet():
            return HybridLMForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **SAFETENSORS)
    except FAULTS as error:
        raise UserError(
            f"The model in {checkpoint} cannot be read ({type(error).__name__}: {error}). "
            "Remove this checkpoint folder to go on from an older one, or choose another run.name."
        ) from error


def model_keywords(config: PretrainConfig, data: RunData) -> dict[str, Any]:
    """The recipe's keywords, and those that follow from the data: vocabulary, special tokens, length."""
    tokenizer = data.tokenizer
    longest = {"max_position_embeddings": max(2048, config.data.sequence_length)}
    from_tokenizer = {
        "vocab_size": data.train.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return longest | config.model | from_tokenizer
