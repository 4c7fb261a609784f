"""The order of tables and pictures: families of tasks, and mixers. What is not named here comes last, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

MIXERS = (
    "bmru", "cmru", "acmru", "fqbmru", "lru", "rglru", "mingru", "mamba2", "attention", "gru", "rglru+bmru", "lru bmru",
)  # fmt: skip
"""What is compared by default."""


@dataclass(frozen=True)
class Family:
    """Tasks that share a section and a picture.

    name: of the picture's file. tasks: names, or patterns as of a shell, in their order. counted: errors are rare and
    positions many, so that counts and intervals are shown, and error rates are drawn on a logarithmic axis.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    counted: bool = False


FAMILIES = (
    Family("copy_first", "Copying the first number", ("copy_first_[0-9]*",)),
    Family("copy_first_symbol", "Copying the first symbol", ("copy_first_symbol_*",)),
    Family("denoising", "Denoising", ("denoising", "denoising_late", "denoising*")),
    Family("flip_flop_lm", "Flip-flop language", ("flip_flop", "flip_flop_lm*"), counted=True),
    Family(
        "mnist",
        "Sequential MNIST",
        ("mnist", "mnist_permuted", "mnist_blank", "mnist_permuted_blank", "mnist*"),
    ),
    Family("recall", "Selective copying and associative recall", ("selective_copying*", "mqar*")),
    Family("corridor", "Corridors", ("corridor", "corridor_two", "corridor*")),
    Family("text", "Persistence in text", ("text*",)),
    Family(
        "formal",
        "Formal languages and groups",
        ("parity", "modular_counting", "dyck1*", "dyck2*", "z2", "z16", "s3", "s4", "s5", "a5", "flip_flop_dense"),
    ),
)

PUBLISHED: dict[str, int | None] = {"z2": 4352, "z16": 85, "s3": 186, "s4": 105, "a5": None, "flip_flop_dense": 178}
"""Median failing lengths of a Mamba variant by task; None: never learnt. Source: Length-independent state tracking
under a parallel scan (Liège, 2026)."""


def family_of(task: str) -> Family:
    for family in FAMILIES:
        if any(fnmatchcase(task, pattern) for pattern in family.tasks):
            return family
    return Family(task, task, (task,))


def by_family(tasks: Iterable[str]) -> dict[Family, list[str]]:
    """The families that have tasks here, and their tasks, all in order."""
    found: dict[Family, list[str]] = {}
    for task in sorted(set(tasks), key=task_order):
        found.setdefault(family_of(task), []).append(task)
    return found


def task_order(task: str) -> tuple[int, int, list[tuple[int, str]]]:
    """A key to sort with: family, place in it, name, where numbers in names count as numbers."""
    family = family_of(task)
    place = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    inside = next(at for at, pattern in enumerate(family.tasks) if fnmatchcase(task, pattern))
    pieces = [(int(piece), "") if piece.isdigit() else (0, piece) for piece in re.split(r"(\d+)", task)]
    return place, inside, pieces


def mixer_order(mixer: str) -> tuple[int, str]:
    return (MIXERS.index(mixer) if mixer in MIXERS else len(MIXERS)), mixer
