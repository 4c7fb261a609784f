"""The run: prepare, train, validate, save. The loop is ours; Accelerate brings devices, processes and precision.

What decides the numbers of step k (data, learning rate, epsilon) is a pure function of k, so that a checkpoint needs
weights, optimizer state and random states only, and a resumed run on a CPU gives the bits of one that was never
stopped.

    RUN/config.yaml       the resolved recipe
    RUN/metrics.jsonl     every step and every validation, once
    RUN/samples.jsonl     texts, if asked for
    RUN/checkpoints/      to resume from
    RUN/final/            the result, for `from_pretrained`
"""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hybridlm.data.loader import batches
from hybridlm.files import replace_file, write_folder
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import config_yaml
from hybridlm.training.journal import Journal
from hybridlm.training.metrics import read_rows
from hybridlm.training.optimizer import build_optimizer
from hybridlm.training.peaks import Utilisation
from hybridlm.training.progress import clock
from hybridlm.training.report import startup_report
from hybridlm.training.resume import Plan, check_run_folder, frozen_settings, plan_run, unwritable
from hybridlm.training.samples import write_samples
from hybridlm.training.schedules import epsilon, learning_rate
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import accelerator_session, on_main
from hybridlm.training.setup import RunData, build_model, micro_batch_size, open_data, tokens_per_step, total_steps
from hybridlm.training.signals import RunInterrupted, StopFlag
from hybridlm.training.state import TrainingState, load_optimizer, load_random_state, save_checkpoint, save_model
from hybridlm.training.step import DivergedError, backward, optimizer_step, valid_targets
from hybridlm.training.validation import validate

MAX_OVERFLOWS = 30
"""fp16: steps in a row that may be left out. The loss scale halves each time; after so many, the gradient is not
finite at all."""


@dataclass
class RunResult:
    """Where a finished run left its results."""

    run_folder: Path
    """RUN."""
    checkpoint: Path
    """The final `from_pretrained` folder."""
    metrics: Path
    """metrics.jsonl."""
    validation: dict[str, Any]
    """The last validation row: bits_per_byte, loss (nats per text token), n_bytes, n_tokens, windows. Empty
    without a validation split."""


def pretrain(config: PretrainConfig) -> RunResult:
    """Trains as `config` says, going on from the newest checkpoint of the run folder if there is one.

    Runs in one process, or in each process of `torchrun` or `accelerate launch`. Raises UserError for what the user
    can put right (data, settings, a folder in use, diverging), and RunInterrupted after Ctrl-C or SIGTERM, once a
    checkpoint is on disk.
    """
    with accelerator_session(config) as accelerator:
        micro_batch_size(config, accelerator.num_processes)  # refused before anything is read or written
        on_main(accelerator, lambda: check_run_folder(config.run.path))
        data = open_data(config, accelerator)
        plan = on_main(accelerator, lambda: plan_run(config, data.train.fingerprint))
        if plan.kind == "finished":
            accelerator.print(f"This run is finished; nothing to do. Its model is in {plan.folder}")
            return _result(config.run.path)
        run = _Run(config, accelerator, data, plan)
        with Journal(config, accelerator, run.done, run.total, plan.kind == "resume") as journal, StopFlag() as stop:
            return run.train(journal, stop)


def _result(run: Path) -> RunResult:
    metrics = run / "metrics.jsonl"
    rows = read_rows(metrics) if metrics.exists() else []
    validations = [row for row in rows if "bits_per_byte" in row]
    return RunResult(run, run / "final", metrics, validations[-1] if validations else {})


class _Run:
    """One session of a run, from its start or a checkpoint to its end or an interruption."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, data: RunData, plan: Plan):
        self.config, self.accelerator, self.data = config, accelerator, data
        self.folder = config.run.path
        self.total = total_steps(config, data.windows.per_epoch)
        self.step_tokens = tokens_per_step(config)
        self.done, self.seconds_before = (plan.state.step, plan.state.seconds) if plan.state is not None else (0, 0.0)
        self.began, self.overflows = time.perf_counter(), 0
        self.plain = build_model(config, data, plan.folder)
        self.model, self.optimizer = accelerator.prepare(self.plain, build_optimizer(self.plain, config.optimizer))
        self.utilisation = Utilisation(self.plain, config, accelerator.device, accelerator.num_processes)
        on_main(accelerator, self._begin_folder)
        accelerator.print(config_yaml(config))
        groups = self.optimizer.param_groups
        accelerator.print(
            startup_report(accelerator, config, self.plain, data.train, groups, self.total, data.windows.per_epoch)
        )
        torch.manual_seed(config.training.seed + accelerator.process_index)
        if plan.folder is not None:
            accelerator.print(f"{'resumed:':12}from {plan.folder}, after step {self.done:,}")
            load_optimizer(plan.folder, accelerator, self.optimizer)
            if not load_random_state(plan.folder, accelerator):
                accelerator.print(
                    "The number of processes changed: dropout draws new random numbers; the data goes on where it was."
                )

    def _begin_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / "config.yaml", config_yaml(self.config))
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def train(self, journal: Journal, stop: StopFlag) -> RunResult:
        """All remaining steps, the last validation, the final model."""
        every = self.config
        if self.done == 0 and every.validation.at_start:
            self._validate(journal)
        stream = self._stream()
        while self.done < self.total:
            began = time.perf_counter()
            row = self._step(next(stream))
            seconds = time.perf_counter() - began
            journal.step(
                row
                | {"tokens_per_second": self.step_tokens / seconds, "seconds": self._seconds()}
                | self.utilisation.row(seconds),
                self.step_tokens,
                seconds,
            )
            last = self.done == self.total
            if last or self._due(every.validation.every):
                self._validate(journal)
            if every.logging.samples.every and (last or self._due(every.logging.samples.every)):
                self._sample(journal)
            number = self._agree(stop.signal)
            if number or last or self._due(every.checkpoint.every):
                path = self._save(journal)
                if number and not last:
                    name = signal.Signals(number).name
                    journal.log(
                        f"{name}: stopped after step {self.done} of {self.total}. Start the same command again to "
                        f"go on from {path}"
                    )
                    raise RunInterrupted(128 + number, self.done, path)
        return self._finish(journal)

    def _step(self, micro_batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """One optimizer step; the training row without its times."""
        lr = learning_rate(self.done, self.total, self.config.optimizer, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.plain.epsilon is not None:
            self.plain.set_epsilon(epsilon(self.done, self.total, self.config.epsilon))
        valid = valid_targets(self.accelerator, micro_batches)
        loss = backward(self.accelerator, self.model, micro_batches, valid, self.config.write_penalty)
        try:
            result = optimizer_step(self.accelerator, self.model, self.optimizer, loss, self.config.optimizer.clip_norm)
        except DivergedError as error:
            newest = f" ({found[-1]})" if (found := checkpoints(self.folder)) else ""
            raise DivergedError(f"Stopped at step {self.done + 1} of {self.total}. {error}{newest}") from None
        self.overflows = self.overflows + 1 if result.skipped else 0
        if self.overflows == MAX_OVERFLOWS:
            raise DivergedError(
                f"Stopped at step {self.done + 1} of {self.total}: the gradient overflowed fp16 in {MAX_OVERFLOWS} "
                "steps in "
                "a row, so nothing was learned. Use training.mixed_precision=bf16, or lower optimizer.lr."
            )
        self.done += 1
        return {
            "step": self.done,
            "loss": result.loss,
            "lr": lr,
            "epsilon": self.plain.epsilon,
            "grad_norm": None if result.skipped else result.grad_norm,
            "tokens": self.done * self.step_tokens,
        }

    def _validate(self, journal: Journal) -> None:
        if self.data.validation is None:
            return
        choice = self.config.validation
        found = validate(self.accelerator, self.plain, self.data.validation, choice.batch_size, choice.max_windows)
        at = {"epsilon": None if self.plain.epsilon is None else 0.0, "seconds": self._seconds()}
        journal.validation({"step": self.done, **found, **at}, self.data.validation.per_epoch)

    def _sample(self, journal: Journal) -> None:
        if self.accelerator.is_main_process:
            choice = self.config.logging.samples
            texts = write_samples(self.plain, self.data.tokenizer, choice, self.config.training.seed)
            for prompt, text in zip(choice.prompts, texts, strict=True):
                journal.sample(self.done, prompt, text)

    def _save(self, journal: Journal) -> Path:
        journal.sync()
        keep = self.config.checkpoint.keep
        return save_checkpoint(
            self.folder, self.accelerator, self.model, self.optimizer, self.data.tokenizer, self._state(), keep
        )

    def _finish(self, journal: Journal) -> RunResult:
        if self.plain.epsilon is not None:
            self.plain.set_epsilon(0.0)
        state = replace(self._state(), epsilon=self.plain.epsilon)
        if self.accelerator.is_main_process:
            write_folder(
                self.folder / "final", lambda folder: save_model(folder, self.plain, self.data.tokenizer, state)
            )
        self.accelerator.wait_for_everyone()
        journal.log(f"Finished {self.total:,} steps in {clock(state.seconds)}. Model: {self.folder / 'final'}")
        return _result(self.folder)

    def _state(self) -> TrainingState:
        annealed = self.plain.epsilon is not None
        return TrainingState(
            step=self.done,
            total_steps=self.total,
            tokens=self.done * self.step_tokens,
            seconds=self._seconds(),
            epsilon=epsilon(self.done, self.total, self.config.epsilon) if annealed else None,
            data_fingerprint=self.data.train.fingerprint,
            settings=frozen_settings(self.config),
            processes=self.accelerator.num_processes,
        )

    def _agree(self, number: int) -> int:
        """The signal that any process got, the same answer for all; 0: none."""
        if self.accelerator.num_processes == 1:
            return number
        everyone = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(everyone.max())  # pyright: ignore[reportAttributeAccessIssue]

    def _stream(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        training, accelerator = self.config.training, self.accelerator
        return batches(
            self.data.windows,
            start_step=self.done,
            batch_size=training.batch_size,
            micro_batch_size=micro_batch_size(self.config, accelerator.num_processes),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=self.config.data.num_workers,
        )

    def _due(self, every: int) -> bool:
        return every > 0 and self.done % every == 0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began
