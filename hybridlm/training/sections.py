"""The fields of a pretraining recipe, by section. The docstring under a field is its `--help`.

Checks that concern one section live in that section, so that pydantic reports all of them in one pass. A field whose
default depends on another (warm-up) is filled in here: the resolved recipe that is stored with the run says what was
used.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from hybridlm.data.prepare import PrepareConfig
from hybridlm.files import expanded
from hybridlm.training.annealing import EpsilonConfig, ExplorationConfig
from hybridlm.training.carriable import refuse_uncarried
from hybridlm.training.fields import SECTION, Count, CountOrNever, Share, whole

FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keywords of the model that the data decides."""


@dataclass(config=SECTION, kw_only=True)
class DataConfig:
    """What is read."""

    folder: str | None = None
    """A data folder that `hybridlm prepare` wrote; its sources have the weights that were given there. Give this or
    `prepare`."""
    prepare: PrepareConfig | None = None
    """How to prepare the data folder on first use. Give this or `folder`."""
    sequence_length: Count = 256
    """Tokens in one training sequence (T). Documents are packed into sequences; the model starts anew at each
    document."""
    carry_state: bool = False
    """Documents longer than `sequence_length` go on in the next batch, with the state that they left: gradients end at
    a sequence's edge, the state does not. An epoch is then read in `training.batch_size` lanes side by side, each from
    its beginning to its end. While epsilon is above 0 nothing is carried. Recurrent layers alone (no attention),
    without gradient_checkpointing and `parallel.sequence`. Validation stays as it is: each of its sequences begins
    anew."""
    carry_restart: Share = 0.0
    """With carry_state: share of the sequences, drawn, that begin anew all the same, as they do in validation: of long
    documents a model would hardly know a state that was just reset."""
    num_workers: CountOrNever = 0
    """Worker processes that read batches ahead; 0 reads in the training process. The order never depends on it."""
    verify: bool = True
    """Check the checksums of the data before the run; reads all of it once."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.folder is None) == (self.prepare is None):
            found = "neither" if self.folder is None else "both"
            raise ValueError(
                f"give exactly one of 'folder' (a prepared data folder) and 'prepare' (how to make one); found {found}"
            )
        if self.carry_restart and not self.carry_state:
            raise ValueError("'carry_restart' is for carry_state: true; set that, or leave carry_restart out")
        return self


@dataclass(config=SECTION, kw_only=True)
class MuonConfig:
    """What Muon has of its own. Learning rate and its schedule are the optimizer's: updates are scaled to AdamW's
    size."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Decay of the running average of the gradient (Nesterov), in [0, 1)."""
    ns_steps: Annotated[int, BeforeValidator(whole), Field(ge=1, le=99)] = 5
    """Newton-Schulz iterations that make an update nearly orthogonal."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Decoupled weight decay of the matrices that Muon trains. null: `optimizer.weight_decay`."""


@dataclass(config=SECTION, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon and AdamW. Vectors, recurrence parameters and embeddings are not decayed."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: for all parameters. muon: Muon for the hidden matrices, AdamW for everything else; not under FSDP."""
    muon: MuonConfig | None = None
    """Settings of Muon, with kind: muon only."""
    lr: Annotated[float, Field(gt=0.0)] = 2e-3
    """Peak learning rate."""
    min_lr_ratio: Share = 0.1
    """Learning rate at the end of the run, as a share of the peak."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    """Decay of the running averages of the gradient and of its square; each in [0, 1)."""
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """Added to the denominator of the update."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay of the matrices; multiplied by the learning rate at each step."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. null: no clipping (the norm is still
    logged)."""

    @model_validator(mode="after")
    def _muon_where_it_is_used(self) -> "OptimizerConfig":
        if self.kind == "muon":
            self.muon = self.muon or MuonConfig()
        elif self.muon is not None:
            raise ValueError(f"'muon' is given, but kind={self.kind}; set kind to muon, or muon to null")
        return self


@dataclass(config=SECTION, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run."""

    kind: Literal["cosine", "wsd", "linear"] = "cosine"
    """cosine: half a cosine from the peak to the end. wsd: warm-up, stable at the peak, then a linear decay. linear: a
    straight line from the peak to the end."""
    warmup_steps: CountOrNever | None = None
    """Steps of linear warm-up. Give this or `warmup_share`."""
    warmup_share: Share | None = None
    """Linear warm-up as a share of the run; 0.02 if neither this nor `warmup_steps` is given."""
    decay_share: Share = 0.2
    """wsd only: share of the run, at its end, over which the learning rate falls."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleConfig":
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise ValueError("give only one of 'warmup_steps' and 'warmup_share'; set the other to null")
        if self.warmup_steps is None and self.warmup_share is None:
            self.warmup_share = 0.02
        if self.kind == "wsd" and (self.warmup_share or 0.0) + self.decay_share > 1.0:
            raise ValueError(
                f"warmup_share + decay_share = {(self.warmup_share or 0.0) + self.decay_share} is more than the "
                "whole run; lower one"
            )
        return self


@dataclass(config=SECTION, kw_only=True)
class TrainingConfig:
    """How much is trained, and how."""

    steps: Count | None = None
    """Optimizer steps of the run. Give exactly one of `steps`, `tokens`, `epochs`."""
    tokens: Count | None = None
    """Tokens of the run, rounded up to whole steps."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the training split, rounded up to whole steps."""
    batch_size: Count = 16
    """Sequences in one optimizer step, over all processes."""
    micro_batch_size: Count | None = None
    """Sequences in one forward of one process; smaller needs less memory. null: all of a process's share at once."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Type of the matrix products. Weights, optimizer and recurrences stay in fp32. fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time."""
    z_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the mean of (log Z)^2 over the targets, Z the softmax's normaliser: it keeps the logits small. 1e-4 is
    a start, 0 switches it off. The logged `loss` stays the cross-entropy alone."""
    seed: Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order, dropout and samples."""
    deterministic: bool = False
    """Refuse operations that are not deterministic on the device; the same run then gives the same bits on a GPU
    too."""
    compile: bool = False
    """Compile the training steps with torch.compile, which takes a while at first; equal to eager up to rounding.
    Validation and samples, and steps in which epsilon or exploration changes or memory units are counted
    (logging.memory_every), run uncompiled."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Keep an exponential moving average of the weights over about the last 1 / (1 - ema_decay) steps, in fp32. It is
    validated too, and saved at the end as `final-ema`. null: off."""
    init_from: str | None = None
    """Begin with the weights of this checkpoint (a folder, or OWNER/NAME on the Hub) instead of random ones: weights
    alone, so step 0 and a fresh optimizer. The model and the tokenizer must be the checkpoint's. A run that goes on
    reads its own checkpoint and not this one."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"give exactly one of 'steps', 'tokens' and 'epochs' (set the others to null); found {found}"
            )
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of micro_batch_size={micro} (times the number of "
                "processes)"
            )
        return self


@dataclass(config=SECTION, kw_only=True)
class GuardConfig:
    """When a run stops by itself, before the weights are changed. A loss or gradient that is not finite always stops
    it."""

    spike: Annotated[float, Field(gt=0.0)] | None = None
    """Stop where a step's loss is above the median of the last `window` losses by more than so many times their spread
    (1.4826 x median absolute deviation, at least 0.01 nats). 10 is a start; null: never."""
    window: Annotated[int, BeforeValidator(whole), Field(ge=8)] = 100
    """Losses that a new one is compared with, at least 8; the first so many steps are not judged."""


@dataclass(config=SECTION, kw_only=True)
class CheckpointConfig:
    """Checkpoints to resume from."""

    every: CountOrNever = 500
    """Steps between checkpoints; 0: only when the run is interrupted."""
    keep: Count = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every: CountOrNever = 0
    """Checkpoints at multiples of so many steps stay for good, besides the newest; 0: none do."""

    @model_validator(mode="after")
    def _reachable(self) -> "CheckpointConfig":
        if self.keep_every and (not self.every or self.keep_every % self.every):
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of every={self.every}, the steps at which there are "
                "checkpoints"
            )
        return self


@dataclass(config=SECTION, kw_only=True)
class ValidationConfig:
    """Bits per byte on the validation split, always at epsilon = 0. The end of the run is always validated."""

    every: CountOrNever = 500
    """Steps between validations; 0: only at the start and at the end."""
    at_start: bool = True
    """Validate the untrained model too."""
    max_windows: Count | None = None
    """Validate on the first so many sequences of the split only. null: on all of it."""
    batch_size: Count = 16
    """Sequences in one validation forward of one process."""
    patience: Count | None = None
    """End the run after so many validations in a row without an improvement. null: never. The best model so far is in
    `best` in any case."""
    min_improvement: Annotated[float, Field(ge=0.0)] = 0.0
    """Bits per byte by which a validation must beat the last one that counted as an improvement, for `patience`; 0: by
    anything."""

    @model_validator(mode="after")
    def _patience_sees_something(self) -> "ValidationConfig":
        if self.patience is not None and self.every == 0:
            raise ValueError("patience counts validations, and every=0 has none on the way; set every above 0")
        if self.patience is None and self.min_improvement:
            raise ValueError("min_improvement is for patience, which is null; give patience, or leave it out")
        return self


@dataclass(config=SECTION, kw_only=True)
class SamplesConfig:
    """Text written by the model during the run, printed and kept in `samples.jsonl`."""

    every: CountOrNever = 0
    """Steps between samples; 0: none."""
    prompts: list[str] = Field(default_factory=lambda: [""])
    """Beginnings to continue; an empty one starts a document."""
    max_new_tokens: Count = 60
    """Length of a sample in tokens."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.8
    """0: always the likeliest token; 1: as the model says."""


@dataclass(config=SECTION, kw_only=True)
class LoggingConfig:
    """What is printed. `metrics.jsonl` always gets every step."""

    every: Count = 10
    """Steps between log lines (where the output is no terminal) and between rows sent to trackers."""
    memory_every: CountOrNever = 10
    """Steps between countings of what the memory units do (how often they write, how long they hold); the last step is
    counted too. 0: never."""
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    """Samples of text."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that get the metrics too (extra `track`). tensorboard writes below the run's folder."""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "hybridlm"
    """Project that wandb and trackio file the run under."""


@dataclass(config=SECTION, kw_only=True)
class ParallelConfig:
    """How the processes of a launcher share a run. In one process nothing is shared, whatever stands here."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole model, gradients are exchanged. fsdp: weights, gradients and optimizer state
    are dealt out over the processes (torch's `fully_shard`), gathered layer by layer; not with Muon, fp16 or
    training.compile. A run may go on with the other kind, in any number of processes."""
    shard: Annotated[int, BeforeValidator(whole), Field(ge=2)] | None = None
    """fsdp only: how many processes hold one copy of the model between them, such as those of one machine; each such
    group has a copy. null: all of them one."""
    reshard: bool = True
    """fsdp only: give gathered weights back after a layer's forward and gather them again for its backward, which takes
    less memory and half as many bytes again."""
    sequence: Count = 1
    """How many processes share each sequence, a part of its tokens for each: for sequences too long for one of them.
    Recurrent layers alone (not attention, gru, lstm), and without training.compile."""
    timeout: Annotated[float, Field(gt=0.0)] = 30.0
    """Minutes after which a process that waits for another one in a step gives up."""

    @model_validator(mode="after")
    def _fsdp_where_it_is_used(self) -> "ParallelConfig":
        if self.kind == "ddp" and (self.shard is not None or not self.reshard):
            raise ValueError("'shard' and 'reshard' are for kind: fsdp; set kind to fsdp, or leave them out")
        return self


@dataclass(config=SECTION, kw_only=True)
class RunConfig:
    """Where the run lives."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "pretrain"
    """Name of the run's folder; the recipe's file name if it is not given."""
    folder: str = "runs"
    """Folder that holds the runs, on a disk that all processes see."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on from the newest checkpoint, or start. never: refuse a folder that holds a run. must: refuse to
    start anew."""

    @property
    def path(self) -> Path:
        return expanded(self.folder) / self.name


@dataclass(config=SECTION, kw_only=True)
class PretrainConfig:
    """A whole recipe."""

    data: DataConfig
    """What is read."""
    training: TrainingConfig
    """How much is trained, and how."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Keywords of HybridLMConfig (pattern, hidden_size, ...). vocab_size and special tokens come from the data's
    tokenizer."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """AdamW, or Muon and AdamW."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """The learning rate over the run."""
    epsilon: EpsilonConfig = Field(default_factory=EpsilonConfig)
    """The annealing of `bmru` layers."""
    exploration: ExplorationConfig = Field(default_factory=ExplorationConfig)
    """The noise on the transitions of `nfsm` layers."""
    write_penalty: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of (mean z)^2, averaged over the sequences: the penalty against memory units that write all the time; 1e-4
    is a start, 0 switches it off."""
    guard: GuardConfig = Field(default_factory=GuardConfig)
    """When a run stops by itself."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints to resume from."""
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    """Bits per byte on the validation split."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """What is printed."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    """How several processes share the run."""
    run: RunConfig = Field(default_factory=RunConfig)
    """Where the run lives."""

    @model_validator(mode="after")
    def _trained_weights_are_not_annealed(self) -> "PretrainConfig":
        for section in (self.epsilon, self.exploration):
            if section.start is None:
                section.start = 1.0 if self.training.init_from is None else 0.0
        return self

    @model_validator(mode="after")
    def _states_can_be_carried(self) -> "PretrainConfig":
        from hybridlm import HybridLMConfig

        if self.data.carry_state:
            refuse_uncarried(HybridLMConfig(**self.model), self.training.gradient_checkpointing)
        return self

    @field_validator("model")
    @classmethod
    def _buildable(cls, model: dict[str, Any]) -> dict[str, Any]:
        from hybridlm import HybridLMConfig

        refused = [name for name in FROM_TOKENIZER if name in model]
        problems = [f"remove {', '.join(refused)}, which the tokenizer of the data decides"] if refused else []
        given = {name: value for name, value in model.items() if name not in refused}
        known = {name: value for name, value in given.items() if name in HybridLMConfig.__dataclass_fields__}
        for fields in (given, known):  # unknown ones are refused before the others are looked at
            try:
                HybridLMConfig(**fields)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return model
