"""The commands that make records again, each as many runs at once as it can."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from hybridlm.evaluation.memory.recipe import named_recipe
from hybridlm.evaluation.memory.summary import Group, value_text


def commands(groups: Sequence[Group]) -> list[str]:
    """`hybridlm memory-suite ...` lines that together make every run of the groups, each run once."""
    tasks: dict[tuple[str, str, bool], dict[str, dict[tuple[int, ...], list[str]]]] = {}
    changes: dict[str, dict[str, Any]] = {}
    for group in groups:
        changes[group.change] = group.changed
        here = tasks.setdefault((group.form, group.change, group.kept), {}).setdefault(group.task, {})
        here.setdefault(group.seeds, []).append(group.mixer)
    lines = []
    for (form, change, kept), found in tasks.items():
        alike: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
        for task, mixers_of in found.items():
            for seeds, mixers in mixers_of.items():
                alike.setdefault((tuple(mixers), seeds), []).append(task)
        lines += [_line(mixers, names, seeds, form, changes[change], kept) for (mixers, seeds), names in alike.items()]
    return lines


def _line(
    mixers: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], form: str, changed: dict[str, Any], kept: bool
) -> str:
    recipe, changed = named_recipe(changed)
    words = [
        f'hybridlm memory-suite --mixers "{",".join(mixers)}" --tasks {",".join(tasks)}',
        f"--seeds {','.join(map(str, seeds))}",
        *(["--quick"] if form == "quick" else []),
        *([f"--recipe {recipe}"] if recipe else []),
        *(f"--set {shlex.quote(f'{name}={value_text(value)}')}" for name, value in sorted(changed.items())),
        *(["--keep"] if kept else []),
    ]
    return " ".join(words)
