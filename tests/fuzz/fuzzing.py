"""Every target with its share of many inputs; faults are collected, so that one does not hide the others."""

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_lines import CommandLines
from damaged_files import Checkpoints, Configs, Patterns, Recipes, Runs, Shards, States
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from workshop import make

TARGETS: dict[str, tuple[Callable[[Path, Path], Any], float]] = {
    "patterns": (lambda made, place: Patterns(), 0.15),
    "configurations": (Configs, 0.1),
    "checkpoints": (Checkpoints, 0.1),
    "shards": (Shards, 0.15),
    "states": (States, 0.1),
    "runs": (Runs, 0.1),
    "recipes": (Recipes, 0.15),
    "command lines": (CommandLines, 0.15),
}
"""Target -> what makes it, and its share of all inputs."""


@dataclass
class Result:
    """What came of a target's inputs."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    """Where and what -> the first input that did it, and how."""
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.name}: {self.inputs:,} inputs in {self.seconds:.0f} s ({counts})"


def fuzz(name: str, made: Path, place: Path, inputs: int, seed: int | None = None) -> Result:
    """Tries `inputs` inputs of a target. made: of `workshop.make`; place: an empty folder; seed: None is always the
    same inputs."""
    target, result = TARGETS[name][0](made, place), Result(name)

    def attempt(case: Any) -> None:
        try:
            outcome = target.attempt(case)
        except Exception as error:
            outcome = "faults"
            frame = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:120]}"
            result.faults.setdefault(key, f"{case!r:.600}\n{traceback.format_exc()}")
        result.outcomes[outcome] += 1

    checks = [check for check in HealthCheck if check.name not in ("differing_executors", "nested_given")]
    options: dict[str, Any] = {"max_examples": inputs, "deadline": None, "database": None, "phases": [Phase.generate]}
    test: Any = settings(**options, suppress_health_check=checks, derandomize=seed is None)(
        given(target.inputs)(attempt)
    )
    start = time.perf_counter()
    (test if seed is None else seeded(seed)(test))()
    result.seconds = time.perf_counter() - start
    return result


def fuzz_all(folder: Path, inputs: int, seed: int | None, only: str | None = None) -> list[Result]:
    """All targets, one after another, with `inputs` inputs altogether; only: one with all of them. Prints what comes of
    each. folder: an empty one, for what they work on."""
    made, found = make(folder / "made"), []
    for name in TARGETS if only is None else [only]:
        share = TARGETS[name][1] if only is None else 1
        place = folder / name.replace(" ", "_")
        place.mkdir()
        found.append(fuzz(name, made, place, round(share * inputs), seed))
        print(found[-1], flush=True)
        for fault, how in found[-1].faults.items():
            print(f"  {fault}\n{how}")
    return found
