"""The sections of a recipe that say how a training state goes to 0: held at its start, then linear, then 0.

`schedules` turns them into the value of a step.
"""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hybridlm.training.fields import SECTION, Share


@dataclass(config=SECTION, kw_only=True)
class EpsilonConfig:
    """The annealing of `bmru` layers from cumulative (1) to bistable (0). Stacks without `bmru` ignore it."""

    start: Share | None = None
    """Epsilon at the start of the run; 0 trains bistable units from the first step. null: 1, or 0 with
    `training.init_from`, since trained units have learned to work at epsilon = 0."""
    hold: Share = 0.02
    """Share of the run during which epsilon stays at `start`."""
    zero: Share = 0.17
    """Share of the run at which epsilon has fallen, linearly, to 0; it stays there."""

    @model_validator(mode="after")
    def _ordered(self) -> "EpsilonConfig":
        _check_order(self.hold, self.zero, "epsilon")
        return self


@dataclass(config=SECTION, kw_only=True)
class ExplorationConfig:
    """The Gumbel noise on the transitions of `nfsm` layers. Stacks without `nfsm` ignore it."""

    start: Annotated[float, Field(ge=0.0)] | None = None
    """Scale of the noise at the start of the run; 1 is as published, 0 for none. null: 1, or 0 with
    `training.init_from`, since trained heads have learned to work without."""
    hold: Share = 0.0
    """Share of the run during which the scale stays at `start`: while the noise is large, states are forgotten within a
    few steps, and little is learned."""
    zero: Share = 0.5
    """Share of the run at which it has fallen, linearly, to 0; it stays there, so that the rest of the run trains what
    is evaluated."""

    @model_validator(mode="after")
    def _ordered(self) -> "ExplorationConfig":
        _check_order(self.hold, self.zero, "exploration")
        return self


def _check_order(hold: float, zero: float, what: str) -> None:
    if hold > zero:
        raise ValueError(f"hold={hold} must not be above zero={zero}: {what} is held first and reaches 0 later")
