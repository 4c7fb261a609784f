"""Learning rate, and what is annealed (epsilon, exploration), as pure functions of the step: a resumed run needs no
scheduler state.

`step` counts from 0: the value for the step about to be taken. `total` is the number of steps of the run.
"""

import math

from hybridlm.training.annealing import EpsilonConfig, ExplorationConfig
from hybridlm.training.sections import OptimizerConfig, ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, total: int) -> int:
    """Steps of linear warm-up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round((schedule.warmup_share or 0.0) * total)


def learning_rate(step: int, total: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """lr x (warm-up to 1, then down to min_lr_ratio in the last step)."""
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        return optimizer.lr * (step + 1) / warmup
    start = max(warmup, total - round(schedule.decay_share * total)) if schedule.kind == "wsd" else warmup
    length = total - 1 - start
    share = min(1.0, max(0.0, (step - start) / length)) if length > 0 else float(step > start)
    shape = 0.5 * (1.0 + math.cos(math.pi * share)) if schedule.kind == "cosine" else 1.0 - share
    return optimizer.lr * (optimizer.min_lr_ratio + (1.0 - optimizer.min_lr_ratio) * shape)


def annealed(step: int, total: int, config: EpsilonConfig | ExplorationConfig) -> float:
    """`start` for the first `hold` share of the run, then linear to 0 at the `zero` share, then 0."""
    start = 1.0 if config.start is None else config.start
    hold, zero = config.hold * total, config.zero * total
    if step >= zero:
        return 0.0
    if step < hold:
        return start
    return start * (zero - step) / (zero - hold)
