"""The tasks by name. A new task is a class and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hybridlm.evaluation.memory.copying import CopyFirst, CopyFirstSymbol
from hybridlm.evaluation.memory.corridor import Corridor, CorridorTwo
from hybridlm.evaluation.memory.task import Task
from hybridlm.evaluation.memory.text import Text

LENGTHS = (50, 100, 300, 600)
"""T of the tasks that copy the first input."""

TASKS: dict[str, Callable[[bool], Task]] = {
    **{f"copy_first_{steps}": partial(CopyFirst, steps) for steps in LENGTHS},
    **{f"copy_first_symbol_{steps}": partial(CopyFirstSymbol, steps) for steps in LENGTHS},
    "corridor": Corridor,
    "corridor_two": CorridorTwo,
    "text": Text,
}
"""Name -> what makes the task, given whether in its quick form."""
