"""The training states of a model: numbers that follow a schedule, are no part of the weights and 0 outside of training.

    epsilon        of `bmru` layers
    exploration    of `nfsm` layers

Each is an attribute of the model, None where its stack has no such layer, is set by `set_NAME`, and has the section
NAME of a recipe.
"""

from collections.abc import Mapping
from typing import Any

from hybridlm.training.schedules import annealed

NAMES = ("epsilon", "exploration")


def training_states(model: Any) -> dict[str, float]:
    """Those that the model has."""
    found = {name: getattr(model, name) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def scheduled(model: Any, config: Any, step: int, total: int) -> dict[str, float]:
    """What they are in a step; config: a PretrainConfig."""
    return {name: annealed(step, total, getattr(config, name)) for name in training_states(model)}


def put(model: Any, values: Mapping[str, float]) -> None:
    """Sets them."""
    for name, value in values.items():
        getattr(model, f"set_{name}")(value)


def switched_off(model: Any) -> dict[str, float]:
    """Those that the model has, at 0, as it is used."""
    return dict.fromkeys(training_states(model), 0.0)


def changing(values: Mapping[str, float], config: Any) -> bool:
    """Whether one of them is between its start and 0, so that the next step will see another value."""
    return any(value not in (0.0, getattr(config, name).start) for name, value in values.items())
