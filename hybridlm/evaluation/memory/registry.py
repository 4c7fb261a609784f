"""The tasks by name. A new task is a class and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.denoising import Denoising
from hybridlm.evaluation.memory.digits import Digits
from hybridlm.evaluation.memory.recall import MultiQueryRecall, SelectiveCopying
from hybridlm.evaluation.memory.task import Task

LENGTHS = (50, 100, 300, 600)
"""T of the tasks that copy the first input."""

TASKS: dict[str, Callable[[bool], Task]] = {
    **{f"copy_first_{steps}": partial(CopyFirst, steps) for steps in LENGTHS},
    **{f"copy_first_symbol_{steps}": partial(CopyFirstSymbol, steps) for steps in LENGTHS},
    "denoising": Denoising,
    "denoising_late": partial(Denoising, late=True),
    "mnist": Digits,
    "mnist_permuted": partial(Digits, permuted=True),
    "mnist_blank": partial(Digits, blank=True),
    "mnist_permuted_blank": partial(Digits, permuted=True, blank=True),
    "mnist_full": partial(Digits, full=True),
    "mnist_full_permuted": partial(Digits, permuted=True, full=True),
    "mnist_full_blank": partial(Digits, blank=True, full=True),
    "mnist_full_permuted_blank": partial(Digits, permuted=True, blank=True, full=True),
    "selective_copying": SelectiveCopying,
    "mqar": MultiQueryRecall,
}
"""Name -> what makes the task, given whether in its quick form."""
