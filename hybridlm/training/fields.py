"""What the fields of a recipe are made of."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

SECTION = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every section: unknown fields are refused, and the docstring under a field is its `--help`."""


def whole(value: object) -> object:
    """`1e6` is written as a number with an exponent, and is a whole number all the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole), Field(ge=1)]
CountOrNever = Annotated[int, BeforeValidator(whole), Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
