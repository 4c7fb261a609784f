"""The tasks by name. A new task is a class and a line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.corridor import Corridor, CorridorTwo
from hybridlm.evaluation.memory.denoising import Denoising
from hybridlm.evaluation.memory.digits import Digits
from hybridlm.evaluation.memory.flipflop import FlipFlop
from hybridlm.evaluation.memory.formal import Parity, dyck1_depth, dyck2_depth, modular_counting
from hybridlm.evaluation.memory.recall import MultiQueryRecall, SelectiveCopying
from hybridlm.evaluation.memory.task import Task
from hybridlm.evaluation.memory.text import Text
from hybridlm.evaluation.memory.word_problems import cyclic, flip_flop_dense, symmetric, word_problem

LENGTHS = (50, 100, 300, 600)
"""T of the tasks that copy the first input."""

DOWNLOADED: dict[str, Callable[[bool], Task]] = {
    "mnist_full": partial(Digits, full=True),
    "mnist_full_permuted": partial(Digits, permuted=True, full=True),
    "mnist_full_blank": partial(Digits, blank=True, full=True),
    "mnist_full_permuted_blank": partial(Digits, permuted=True, blank=True, full=True),
}
"""Tasks whose data comes from the network."""

BY_NAME: dict[str, Callable[[bool], Task]] = {**DOWNLOADED, "s5": partial(word_problem, symmetric(5))}
"""Tasks that are run only where they are named."""

TASKS: dict[str, Callable[[bool], Task]] = {
    **{f"copy_first_{steps}": partial(CopyFirst, steps) for steps in LENGTHS},
    **{f"copy_first_symbol_{steps}": partial(CopyFirstSymbol, steps) for steps in LENGTHS},
    "denoising": Denoising,
    "denoising_late": partial(Denoising, late=True),
    "flip_flop": FlipFlop,
    "mnist": Digits,
    "mnist_permuted": partial(Digits, permuted=True),
    "mnist_blank": partial(Digits, blank=True),
    "mnist_permuted_blank": partial(Digits, permuted=True, blank=True),
    "selective_copying": SelectiveCopying,
    "mqar": MultiQueryRecall,
    "corridor": Corridor,
    "corridor_two": CorridorTwo,
    "text": Text,
    "parity": Parity,
    "modular_counting": modular_counting,
    "dyck1_depth": dyck1_depth,
    "dyck2_depth": dyck2_depth,
    "z2": partial(word_problem, cyclic(2)),
    "z16": partial(word_problem, cyclic(16)),
    "s3": partial(word_problem, symmetric(3)),
    "s4": partial(word_problem, symmetric(4)),
    "a5": partial(word_problem, symmetric(5, even=True)),
    "flip_flop_dense": flip_flop_dense,
    **BY_NAME,
}
"""Name -> what makes the task, given whether in its quick form."""


def definition(task: str) -> str | None:
    """The first paragraph of the docstring of what makes a task; None where the name is unknown."""
    maker: Any = TASKS.get(task)
    while isinstance(maker, partial):
        maker = maker.func
    text = inspect.getdoc(maker) if maker is not None else None
    return " ".join(text.partition("\n\n")[0].split()) if text else None
