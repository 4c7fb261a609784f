"""One run: a model made, trained on one task, and put to its tests."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridlm.evaluation.memory.formal import TRAINED, Automaton
from hybridlm.evaluation.memory.model import MemoryModel
from hybridlm.evaluation.memory.recipe import Recipe
from hybridlm.evaluation.memory.task import IGNORED, Batch, Task, Test
from hybridlm.model.cell_hybridlm import Cell
from hybridlm.training.optimizer import parameter_groups
from hybridlm.training.schedules import annealed, learning_rate
from hybridlm.training.sections import OptimizerConfig

CPU = torch.device("cpu")
CHUNK = 2048
"""Steps of a test that run in one forward; the state is carried on."""
LONGEST_ATTENTION = 8192
"""Longer tests are skipped for stacks whose cost grows with the square of the length."""
LONGEST_FAILING, ROWS_FAILING = 4096, 128
"""Where such stacks are followed to in tests that look for a failing length, and with how many sequences: keys and
values of all of them are kept."""
SHARE_FAILING = 0.1
"""Share of sequences with an error above which a length counts as failed."""
TOKENS_AT_ONCE = 65_536
"""Inputs of a test that are in one forward, over all rows."""
TOKENS_MADE = 2**26
"""Inputs of a test for a failing length that are made at once: all rows together where they are no more, so that the
test can stop when it has seen enough of them."""


def run(
    task: Task,
    mixer: str,
    seed: int,
    recipe: Recipe,
    device: torch.device = CPU,
    keep: Callable[[MemoryModel, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains and tests; the measured part of a record. keep: is given the model with it, at the end."""
    torch.manual_seed(seed)
    model = MemoryModel(task, recipe.config(mixer, task.inputs if task.symbols else 1)).to(device)
    began = time.perf_counter()
    loss = train(model, task, seed, recipe)
    trained = time.perf_counter()
    results = []
    for test in _tests(task, recipe):
        # Tests of the same length are of different draws.
        place = sum(result["length"] == test.length for result in results)
        results.append(measure(model, test, 7_000_003 * (seed + 1) + 104_729 * place + test.length))
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": loss,
        "tests": results,
        "seconds_training": round(trained - began, 1),
        "seconds_testing": round(time.perf_counter() - trained, 1),
    }
    if keep is not None:
        keep(model, found)
    return found


def train(model: MemoryModel, task: Task, seed: int, recipe: Recipe) -> float | None:
    """Returns the mean loss of the last twentieth of the steps; None where the loss stopped being finite, which ends
    the training, or a weight is not at its end."""
    steps = recipe.steps or task.budget.steps
    optimizer, factors = _optimizer(model, recipe.optimizer, recipe.recurrent_lr)
    data = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    backbone = model.backbone.train()
    backbone.record_writes(recipe.write_penalty > 0)
    losses = []
    for step in range(steps):
        rate = learning_rate(step, steps, recipe.optimizer, recipe.schedule)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        backbone.set_epsilon(annealed(step, steps, recipe.annealing))
        backbone.set_exploration(annealed(step, steps, recipe.exploring))
        batch = _batch(task, recipe, step, steps, data).to(model.device)
        answers = model(batch.inputs)
        targets = to_first_error(answers, batch.targets) if recipe.to_first_error else batch.targets
        loss = loss_of(answers, targets)
        penalty = backbone.write_penalty() if recipe.write_penalty else None
        losses.append(loss.detach())
        (loss if penalty is None else loss + recipe.write_penalty * penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99 and not torch.stack(losses[-100:]).isfinite().all():
            return None
    backbone.set_epsilon(0.0)
    backbone.set_exploration(0.0)
    backbone.record_writes(False)
    last = torch.stack(losses[-max(1, steps // 20) :]).mean().item()
    finite = math.isfinite(last) and all(bool(p.isfinite().all()) for p in model.parameters())
    return last if finite else None


def _tests(task: Task, recipe: Recipe) -> list[Test]:
    return task.tests(recipe.longest) if isinstance(task, Automaton) else task.tests()


def _batch(task: Task, recipe: Recipe, step: int, steps: int, data: torch.Generator) -> Batch:
    rows = task.budget.rows
    if recipe.length_start is None or not isinstance(task, Automaton):
        return task.batch(rows, data)
    length = recipe.length(step, steps, TRAINED)
    return task.of_length(length, rows * TRAINED // length, data)


def loss_of(answers: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy or squared error, the mean over what is asked."""
    if targets.is_floating_point():
        asked = ~targets.isnan()
        return F.mse_loss(answers[asked], targets[asked])
    asked = targets != IGNORED
    return F.cross_entropy(answers[asked], targets[asked])


def to_first_error(answers: Tensor, targets: Tensor) -> Tensor:
    """Classes (B, T), of which those behind a row's first wrong answer are not asked any more."""
    wrong = (targets != IGNORED) & (answers.argmax(-1) != targets)
    return targets.masked_fill(wrong.cumsum(1) - wrong.long() > 0, IGNORED)


def _optimizer(
    model: MemoryModel, config: OptimizerConfig, recurrent_lr: float
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW over the groups of pretraining, the recurrences' parameters apart; and each group's factor on the rate."""
    own = {id(p) for cell in _cells(model) for p in cell.parameters()}
    groups, factors = [], []
    for group in parameter_groups(model, config.weight_decay):
        for inside, factor in ((False, 1.0), (True, recurrent_lr)):
            params = [p for p in group["params"] if (id(p) in own) == inside]
            if params:
                groups.append({**group, "params": params})
                factors.append(factor)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True), factors


def _cells(model: MemoryModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, Cell)]


@torch.no_grad()
def measure(model: MemoryModel, test: Test, seed: int) -> dict[str, Any]:
    """One test on draws of `seed`: counts of errors for classes, the mean squared error for numbers.

    asked and wrong: positions; right: sequences without an error, of `rows`; failing: see `Test`. skipped: why a test
    was not run. An answer that is NaN is wrong, and a squared error that is not finite is None.
    """
    if model.grows and test.failing:
        test = dataclasses.replace(test, length=min(test.length, LONGEST_FAILING), rows=min(test.rows, ROWS_FAILING))
    found: dict[str, Any] = {"name": test.name, "length": test.length, "rows": test.rows}
    if model.grows and test.length > LONGEST_ATTENTION:
        return {**found, "skipped": f"attention: longer than {LONGEST_ATTENTION}, and its cost grows with the square"}
    model.eval()
    maker = torch.Generator().manual_seed(seed)
    tally = _Tally(test)
    at_once = max(1, min(test.rows, 16 * TOKENS_AT_ONCE // test.length))
    if test.failing:
        at_once = max(1, min(test.rows, TOKENS_MADE // test.length))
    for first in range(0, test.rows, at_once):
        batch = test.make(min(at_once, test.rows - first), maker)
        _stream(model, Batch(batch.inputs[:, : test.length], batch.targets[:, : test.length]), tally)
    return {**found, **tally.result()}


def _stream(model: MemoryModel, batch: Batch, tally: _Tally) -> None:
    """The forward of a test, chunk by chunk, until the end or until the tally has seen enough."""
    rows, length = batch.targets.shape
    chunk = max(1, min(CHUNK, TOKENS_AT_ONCE // rows))
    chunk = length if length <= chunk else chunk
    cache = model.cache() if length > chunk else None
    tally.begin(rows)
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        answers = model(batch.inputs[:, part].to(model.device), cache)
        tally.add(start, answers.cpu(), batch.targets[:, part])
        if tally.enough:
            return


class _Tally:
    """What has been counted in a test so far."""

    def __init__(self, test: Test):
        self.test = test
        self.asked = self.wrong = self.right = 0
        self.squares = 0.0
        self.numbers = False
        self.first_errors: list[int] = []
        self.ok = torch.empty(0, dtype=torch.bool)
        self.enough = False

    def begin(self, rows: int) -> None:
        self.right += int(self.ok.sum())
        self.ok = torch.ones(rows, dtype=torch.bool)

    def add(self, start: int, answers: Tensor, targets: Tensor) -> None:
        if targets.is_floating_point():
            self.numbers = True
            asked = ~targets.isnan()
            self.squares += (answers[asked] - targets[asked]).double().square().sum().item()
            self.asked += int(asked.sum())
            return
        asked = targets != IGNORED
        wrong = asked & ((answers.argmax(-1) != targets) | answers.isnan().any(-1))
        self.asked, self.wrong = self.asked + int(asked.sum()), self.wrong + int(wrong.sum())
        fresh = wrong.any(1) & self.ok
        self.ok &= ~fresh
        if self.test.failing:
            firsts = wrong[fresh].int().argmax(1) + start + 1
            self.first_errors = sorted(self.first_errors + firsts.tolist())
            # Rows that are made later may have errors earlier: they are followed to the failing length so far.
            self.enough = self.failing is not None and self.failing <= start + targets.shape[1]

    @property
    def allowed(self) -> int:
        """How many sequences may have an error."""
        return int(SHARE_FAILING * self.test.rows)

    @property
    def failing(self) -> int | None:
        """The length at which more had one; None: not by now."""
        return self.first_errors[self.allowed] if len(self.first_errors) > self.allowed else None

    def result(self) -> dict[str, Any]:
        self.begin(0)
        if self.numbers:
            error = self.squares / self.asked
            return {"asked": self.asked, "mse": error if math.isfinite(error) else None}
        found: dict[str, Any] = {"asked": self.asked, "wrong": self.wrong, "right": self.right}
        if self.test.failing:
            found["failing"] = self.failing
            found["first_errors"] = self.first_errors[: self.allowed + 1]
            if self.failing is not None:
                del found["right"]  # not all of the length was seen
        return found
