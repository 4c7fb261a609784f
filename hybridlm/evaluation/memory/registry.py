"""The tasks by name. A new task is a class and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.corridor import Corridor, CorridorTwo
from hybridlm.evaluation.memory.flipflop import FlipFlop
from hybridlm.evaluation.memory.formal import Parity, dyck1_depth, dyck2_depth, modular_counting
from hybridlm.evaluation.memory.task import Task
from hybridlm.evaluation.memory.text import Text
from hybridlm.evaluation.memory.word_problems import cyclic, flip_flop_dense, symmetric, word_problem

LENGTHS = (50, 100, 300, 600)
"""T of the tasks that copy the first input."""

TASKS: dict[str, Callable[[bool], Task]] = {
    **{f"copy_first_{steps}": partial(CopyFirst, steps) for steps in LENGTHS},
    **{f"copy_first_symbol_{steps}": partial(CopyFirstSymbol, steps) for steps in LENGTHS},
    "parity": Parity,
    "modular_counting": modular_counting,
    "dyck1_depth": dyck1_depth,
    "dyck2_depth": dyck2_depth,
    "flip_flop_dense": flip_flop_dense,
    "z2": partial(word_problem, cyclic(2)),
    "z16": partial(word_problem, cyclic(16)),
    "s3": partial(word_problem, symmetric(3)),
    "s4": partial(word_problem, symmetric(4)),
    "a5": partial(word_problem, symmetric(5, even=True)),
    "flip_flop": FlipFlop,
    "corridor": Corridor,
    "corridor_two": CorridorTwo,
    "text": Text,
}
"""Name -> what makes the task, given whether in its quick form."""

DOWNLOADED: frozenset[str] = frozenset()
"""Tasks whose data comes from the network."""
