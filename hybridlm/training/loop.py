"""The run: prepare, train, validate, save. The loop is ours; Accelerate brings devices, processes and precision.

What decides the numbers of step k (data, learning rate, epsilon, exploration) is a pure function of k, so that a
checkpoint needs weights, optimizer state, random states, and the states that `data.carry_state` carries, and a resumed
run on a CPU gives the bits of one that was never stopped.

    RUN/config.yaml       the resolved recipe
    RUN/metrics.jsonl     every step and every validation, once
    RUN/samples.jsonl     texts, if asked for
    RUN/sessions.jsonl    when, where and by which command it was started, and gone on with
    RUN/checkpoints/      to resume from
    RUN/final/            the result, for `from_pretrained`
    RUN/final-ema/        the averaged weights, with training.ema_decay
    RUN/best/             the model of the best validation so far
    RUN/diverged.json     why the last session stopped by itself, if it did
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hybridlm.data.loader import batches
from hybridlm.files import replace_file
from hybridlm.training.carrying import CarriedStates
from hybridlm.training.checkpoints import checkpoints, write_sealed
from hybridlm.training.compiling import Compiling
from hybridlm.training.config import config_yaml
from hybridlm.training.diagnosis import FailedStep
from hybridlm.training.early_stopping import early_stopping
from hybridlm.training.guard import DivergedError, OverflowsError, SpikeGuard
from hybridlm.training.halt import forget_halt, halted, halted_validation
from hybridlm.training.journal import Journal
from hybridlm.training.memory import MemoryStatistics
from hybridlm.training.parallel import arrange
from hybridlm.training.peaks import Utilisation
from hybridlm.training.peers import peers
from hybridlm.training.progress import clock
from hybridlm.training.random_state import RandomState
from hybridlm.training.report import startup_report
from hybridlm.training.result import RunResult, finished_text, result_of
from hybridlm.training.resume import Plan, check_run_folder, frozen_settings, held_folder, plan_run, unwritable
from hybridlm.training.samples import write_samples
from hybridlm.training.schedules import learning_rate
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import accelerator_session, on_main
from hybridlm.training.sessions import note_session
from hybridlm.training.setup import (
    RunData,
    build_model,
    micro_batch_size,
    open_data,
    prepare,
    tokens_per_step,
    total_steps,
)
from hybridlm.training.sharding import gathered, weight_mesh
from hybridlm.training.signals import RunInterrupted, StopFlag
from hybridlm.training.state import (
    SaveError,
    TrainingState,
    load_average,
    load_carried,
    load_optimizer,
    load_random_state,
    save_checkpoint,
    save_model,
    saving,
)
from hybridlm.training.step import Terms, backward, optimizer_step, valid_targets
from hybridlm.training.training_states import changing, put, scheduled, switched_off
from hybridlm.training.validation import validate

MAX_OVERFLOWS = 30
"""fp16: steps in a row that may be left out. The loss scale halves each time; after so many, the gradient is not
finite at all."""


def pretrain(config: PretrainConfig) -> RunResult:
    """Trains as `config` says, going on from the newest checkpoint of the run folder if there is one.

    Runs in one process, or in each process of `torchrun` or `accelerate launch`. Raises UserError for what the user
    can put right (data, settings, a folder in use, diverging), and RunInterrupted after Ctrl-C or SIGTERM, once a
    checkpoint is on disk.
    """
    with peers(config), accelerator_session(config) as accelerator:
        micro_batch_size(config, accelerator.num_processes)  # refused before anything is read or written
        on_main(accelerator, lambda: check_run_folder(config.run.path))
        with held_folder(config.run.path, accelerator):
            data = open_data(config, accelerator)
            plan = on_main(accelerator, lambda: plan_run(config, data.train.fingerprint, accelerator.print))
            if plan.kind == "finished":
                accelerator.print(finished_text(plan))
                return result_of(config.run.path)
            run = _Run(config, accelerator, data, plan)
            with (
                Journal(config, accelerator, run.total, plan.state) as journal,
                StopFlag() as stop,
            ):
                return run.train(journal, stop)


class _Run:
    """One session of a run, from its start or a checkpoint to its end or an interruption."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, data: RunData, plan: Plan):
        self.config, self.accelerator, self.data = config, accelerator, data
        self.folder = config.run.path
        self.layout, self.mesh = arrange(config, accelerator), weight_mesh(config, accelerator)
        self.total, self.step_tokens = total_steps(config, data.windows.per_epoch), tokens_per_step(config)
        self.done, self.seconds_before = (plan.state.step, plan.state.seconds) if plan.state is not None else (0, 0.0)
        self.validation_due = plan.state is not None and plan.state.validation_due
        self.began, self.overflows = time.perf_counter(), plan.state.overflows if plan.state is not None else 0
        self.guard = SpikeGuard(config.guard, plan.state.losses if plan.state is not None else ())
        self.plain = build_model(config, data, plan.folder)
        self.layout.split(self.plain)
        self.watch = early_stopping(config, data, plan.state.early_stopping if plan.state is not None else None)
        self.average, self.model, self.optimizer = prepare(config, accelerator, self.plain, self.mesh)
        self.carried = self._carried() if config.data.carry_state else None
        self.compiling = Compiling(config.training.compile, self.plain, accelerator)
        self.utilisation = Utilisation(self.plain, config, accelerator.device, accelerator.num_processes)
        on_main(accelerator, self._begin_folder)
        accelerator.print(config_yaml(config))
        groups, per_epoch = self.optimizer.param_groups, data.windows.per_epoch
        accelerator.print(startup_report(accelerator, config, self.plain, data.train, groups, self.total, per_epoch))
        torch.manual_seed(config.training.seed + accelerator.process_index)
        if plan.folder is not None:
            accelerator.print(f"{'resumed:':12}from {plan.folder}, after step {self.done:,}")
            load_optimizer(plan.folder, accelerator, self.plain, self.optimizer)
            if self.average is not None:
                load_average(plan.folder, accelerator, self.average)
            if self.carried is not None:
                places = config.training.batch_size, self.layout.data_rank, self.layout.data_world
                load_carried(plan.folder, accelerator, self.carried, *places)
            if not load_random_state(plan.folder, accelerator):
                accelerator.print(
                    "The number of processes changed: dropout draws new random numbers; the data goes on where it was."
                )
        elif config.training.init_from is not None:
            accelerator.print(f"{'weights:':12}from {config.training.init_from}")

    def _carried(self) -> CarriedStates:
        rows = self.config.training.batch_size // self.layout.data_world
        return CarriedStates(self.plain.config, rows // micro_batch_size(self.config, self.layout.world))

    def _begin_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            forget_halt(self.folder)
            replace_file(self.folder / "config.yaml", config_yaml(self.config))
            note_session(self.folder, self.done, self.accelerator.device, self.accelerator.num_processes)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def train(self, journal: Journal, stop: StopFlag) -> RunResult:
        """All remaining steps, the last validation, the final model."""
        if self.done == 0 and self.config.validation.at_start:
            self._validate(journal)
        if self.validation_due:
            self._after_step(journal, stop)
        stream = self._stream()
        while self.done < self.total and not self.watch.stopped:
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
            self._after_step(journal, stop)
        return self._finish(journal)

    def _after_step(self, journal: Journal, stop: StopFlag) -> None:
        """Validation, samples and checkpoint, where they are due. A validation that a signal breaks off is due again
        after the resume, and so is all that follows it."""
        every, last = self.config, self.done == self.total
        self.validation_due = False
        if last or self._due(every.validation.every):
            self.validation_due = not self._validate(journal, lambda: self._agree(stop.signal) > 0)
        last = last or self._agree(int(self.watch.stopped)) > 0
        samples = every.logging.samples.every
        if samples and not self.validation_due and (last or self._due(samples)):
            self._sample(journal)
        number = self._agree(stop.signal)
        if number or last or self._due(every.checkpoint.every):
            path = self._save(journal, must=bool(number) or last)
            if number and (self.validation_due or not last) and path is not None:
                name = signal.Signals(number).name
                journal.log(
                    f"{name}: stopped after step {self.done} of {self.total}. Start the same command again to go on "
                    f"from {path}"
                )
                raise RunInterrupted(128 + number, self.done, path)

    def _step(self, micro_batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """One optimizer step; the training row without its times."""
        lr = learning_rate(self.done, self.total, self.config.optimizer, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        states = scheduled(self.plain, self.config, self.done, self.total)
        put(self.plain, states)
        annealing = changing(states, self.config)
        valid = valid_targets(self.accelerator, micro_batches)
        carried = None if states.get("epsilon") else self.carried  # above 0 a unit counts: over a lane, without bound
        terms = Terms(self.config.write_penalty, self.config.training.z_loss)
        failed_if = FailedStep(micro_batches, valid, terms, RandomState(self.accelerator.device), carried)
        counted = {}
        with self._memory() as memory, self.compiling.uncompiled(annealing or memory is not None):
            loss = backward(self.accelerator, self.model, micro_batches, valid, terms, memory, carried)
        if loss.z_loss is not None:
            counted["z_loss"] = loss.z_loss.item()
        if memory is not None and (rows := memory.rows(self.accelerator)):
            counted["memory"] = rows
        try:
            self.guard.check(loss.cross_entropy.item())
            result = optimizer_step(
                self.accelerator, self.model, self.optimizer, loss.cross_entropy, self.config.optimizer.clip_norm
            )
            self._count_overflows(result.skipped)
        except DivergedError as error:
            where = self.accelerator, self.plain, failed_if, self.config, self.done + 1, self.total
            raise halted(error, *where) from None
        self.guard.note(result.loss)
        if carried is not None:
            carried.move_on()
        if self.average is not None and not result.skipped:
            self.average.update(self.plain)
        self.done += 1
        return {
            "step": self.done,
            "loss": result.loss,
            "lr": lr,
            **{"epsilon": None, **states},
            "grad_norm": None if result.skipped else result.grad_norm,
            "tokens": self.done * self.step_tokens,
            **counted,
        }

    def _count_overflows(self, skipped: bool) -> None:
        self.overflows = self.overflows + 1 if skipped else 0
        if self.overflows == MAX_OVERFLOWS:
            raise OverflowsError(
                f"The gradient overflowed fp16 in {MAX_OVERFLOWS} steps in a row, so nothing was learned in them."
            )

    def _memory(self) -> AbstractContextManager[MemoryStatistics | None]:
        """What counts the writes of the step about to be taken, if that is due."""
        every, step = self.config.logging.memory_every, self.done + 1
        if every and (step % every == 0 or step == self.total):
            return MemoryStatistics(self.plain, recording=self.config.write_penalty > 0)
        return nullcontext()

    def _validate(self, journal: Journal, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Whether it came to its end."""
        if self.data.validation is None:
            return True
        choice = self.config.validation
        measured = self.data.validation, choice.batch_size, choice.max_windows, self.layout, give_up
        with self.compiling.uncompiled():
            found = validate(self.accelerator, self.plain, *measured)
        if found is not None and self.average is not None:
            average = validate(self.accelerator, self.average.model, *measured)
            found = average and found | {"bits_per_byte_ema": average["bits_per_byte"]}
        if found is None:
            return False
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        if bad:
            raise halted_validation(self.accelerator, self.folder, self.done, self.total, bad[0], found[bad[0]])
        at = {"epsilon": None, **switched_off(self.plain), "seconds": self._seconds()}
        journal.validation({"step": self.done, **found, **at}, self.data.validation.per_epoch)
        before = self.watch.seen.best, self.watch.seen.best_step
        if self.watch.see(self.done, found["bits_per_byte"], found["windows"]):
            try:
                self._write("best", self.plain)
            except SaveError as error:
                self.watch.seen.best, self.watch.seen.best_step = before
                journal.log(f"{error} The model that was best before, if there was one, is there still.")
        return True

    def _sample(self, journal: Journal) -> None:
        if self.mesh is None and not self.accelerator.is_main_process:
            return
        choice = self.config.logging.samples
        with self.compiling.uncompiled(), self.accelerator.autocast() if self.mesh is not None else nullcontext():
            texts = write_samples(self.plain, self.data.tokenizer, choice, self.config.training.seed)
        for prompt, text in zip(choice.prompts, texts, strict=True):
            journal.sample(self.done, prompt, text)

    def _save(self, journal: Journal, must: bool) -> Path | None:
        """A checkpoint; None where it could not be written and the training can go on (`must` is false)."""
        contents = self.model, self.optimizer, self.data.tokenizer, self._state(), self.average, self.carried
        try:
            return save_checkpoint(self.folder, self.accelerator, *contents, self.config.checkpoint, journal.sync)
        except SaveError as error:
            newest = f"The newest checkpoint is {found[-1]}" if (found := checkpoints(self.folder)) else "There is none"
            if must:
                raise SaveError(
                    f"Stopped after step {self.done} of {self.total}: {error} {newest}; {error.remedy} and give the "
                    "same command again to go on."
                ) from error
            journal.log(f"{error} {newest}. The training goes on; {error.remedy} before the next checkpoint.")
            return None

    def _finish(self, journal: Journal) -> RunResult:
        put(self.plain, switched_off(self.plain))
        if self.average is not None:
            self._write("final-ema", self.average.model)
        final = self._write("final", self.plain)  # last: where it stands, the run is finished
        if self.done < self.total:
            seen = self.watch.seen
            journal.log(
                f"Stopped early: {seen.waited} validations in a row brought no improvement. The best model, of step "
                f"{seen.best_step:,} with {seen.best:.4f} bits per byte: {self.folder / 'best'}"
            )
        steps = f"{self.done:,} steps" if self.done == self.total else f"{self.done:,} of {self.total:,} steps"
        journal.log(f"Finished {steps} in {clock(self._seconds())}. Model: {final}")
        return result_of(self.folder)

    def _write(self, name: str, model: Any) -> Path:
        """A `from_pretrained` folder of the run, for use with the training states at 0. Called by every process; the
        main one writes."""
        ended_early = name != "best" and self.done < self.total
        state = replace(self._state(), **switched_off(self.plain), stopped_early=ended_early)
        target = self.folder / name
        whole = gathered(model, self.accelerator.is_main_process)

        def write() -> None:
            with saving(target):
                write_sealed(target, lambda folder: save_model(folder, whole, self.data.tokenizer, state))

        on_main(self.accelerator, write)
        return target

    def _state(self) -> TrainingState:
        return TrainingState(
            step=self.done,
            total_steps=self.total,
            tokens=self.done * self.step_tokens,
            seconds=self._seconds(),
            **{"epsilon": None, **scheduled(self.plain, self.config, self.done, self.total)},  # pyright: ignore[reportArgumentType]
            data_fingerprint=self.data.train.fingerprint,
            settings=frozen_settings(self.config),
            processes=self.accelerator.num_processes,
            early_stopping=self.watch.state() if self.data.validation is not None else None,
            losses=self.guard.losses,
            overflows=self.overflows,
            validation_due=self.validation_due,
        )

    def _agree(self, number: int) -> int:
        """The signal that any process got, the same answer for all; 0: none."""
        if self.accelerator.num_processes == 1:
            return number
        everyone = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(everyone.max())  # pyright: ignore[reportAttributeAccessIssue]

    def _stream(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        return batches(
            self.data.windows,
            start_step=self.done,
            batch_size=self.config.training.batch_size,
            micro_batch_size=micro_batch_size(self.config, self.layout.world),
            rank=self.layout.data_rank,
            world_size=self.layout.data_world,
            num_workers=self.config.data.num_workers,
            part=self.layout.part,
            parts=self.layout.parts,
        )

    def _due(self, every: int) -> bool:
        return every > 0 and self.done % every == 0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began
