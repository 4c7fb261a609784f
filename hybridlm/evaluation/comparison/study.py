"""What is compared: a YAML file that names one recipe, the models, the learning rates that are tried for each, and the
length of the search and of the runs that count.

    recipe: recipe.yaml              of `hybridlm pretrain`; a path from the study's folder
    models:                          name -> the fields of the recipe that make it this model
      rglru: {model.pattern: rglru*6, model.hidden_size: 256}
      hybrid: {model.pattern: (rglru bmru)*3, model.hidden_size: 256}
    rates: [1e-3, 2e-3, 4e-3]        learning rates, ascending; the search goes on beyond an end that is best
    search: {training.tokens: 1_000_000}     not needed where there is one rate
    final: {training.tokens: 4_000_000}
    seeds: [0, 1, 2]                 of the final runs; the search has the first
    lengths: [512, 2k, 8k, 32k]      contexts in which the final models are measured on --text
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass as checked

from hybridlm.errors import UserError
from hybridlm.evaluation.lengths.labels import read_lengths
from hybridlm.training.config import PretrainConfig, load_config, read_yaml

_OURS = ("run", "optimizer.lr", "training.seed", "data.folder")
"""Fields of a recipe that a study sets for each run."""

Fields = dict[str, Any]


@checked(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)
class _File:
    recipe: str
    models: Annotated[dict[str, Fields], Field(min_length=1)]
    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    final: Fields
    search: Fields = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0, 1, 2]
    )
    lengths: list[int | str] = Field(default_factory=list)

    @field_validator("rates")
    @classmethod
    def _ascending(cls, rates: list[float]) -> list[float]:
        if rates != sorted(set(rates)):
            raise ValueError("must ascend")
        return rates

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must differ from one another")
        return seeds


@dataclass(frozen=True)
class Study:
    """A study that was read, whose recipes can all be built."""

    path: Path
    recipe: Path
    models: dict[str, Fields]
    rates: tuple[float, ...]
    search: Fields
    final: Fields
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]

    def config(self, model: str, stage: str, rate: float, seed: int) -> PretrainConfig:
        """The recipe of a run. Raises UserError that lists what is wrong with it."""
        return load_config(self.recipe, self.overrides(model, stage, rate, seed))

    def overrides(self, model: str, stage: str, rate: float, seed: int) -> list[str]:
        """The same as words of the command line."""
        fields = {**self.models[model], **(self.search if stage == "search" else self.final)}
        fields |= {"optimizer.lr": rate, "training.seed": seed}
        return [f"{name}={_word(value)}" for name, value in fields.items()]


def folder_name(model: str) -> str:
    """A model's name as a part of its runs' names."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", model.replace("+", ".")).strip("_")


def read_study(path: str | Path) -> Study:
    """Raises UserError for a file that is none, with all that is wrong, and for models whose recipes are."""
    path = Path(path)
    values = read_yaml(path, "study")
    try:
        file = TypeAdapter(_File).validate_python(values)
        lengths = _lengths(path, file.lengths)
    except ValidationError as error:
        raise UserError("\n".join([f"study {path}:", *map(_problem, error.errors(include_url=False))])) from None
    if len(file.rates) > 1 and not file.search:
        raise UserError(
            f"study {path}: search: must be given where there are several rates, e.g. search: {{training.steps: 300}}."
        )
    for field in ("search", "final"):
        _check_fields(path, field, getattr(file, field))
    folders: dict[str, str] = {}
    for name, fields in file.models.items():
        _check_fields(path, f"models.{name}", fields)
        other = folders.setdefault(folder_name(name), name)
        if other != name or not folder_name(name):
            raise UserError(
                f"study {path}: models: {name!r} needs letters and digits that differ from those of {other!r}."
            )
    study = Study(
        path,
        Path(os.path.normpath(path.parent / file.recipe)),
        file.models,
        tuple(file.rates),
        file.search,
        file.final,
        tuple(file.seeds),
        tuple(lengths),
    )
    for name in study.models:
        for stage in ("search", "final"):
            try:
                config = study.config(name, stage, study.rates[0], study.seeds[0])
            except UserError as error:
                raise UserError(f"study {path}, model {name!r}: {error}") from None
            if config.data.prepare is not None and config.data.prepare.validation.share == 0:
                raise UserError(
                    f"study {path}, model {name!r}: data.prepare.validation.share=0, and models are compared by their "
                    "validation. Hold some text out."
                )
    return study


def _lengths(path: Path, given: list[int | str]) -> list[int]:
    try:
        return read_lengths(",".join(map(str, given))) if given else []
    except UserError as error:
        raise UserError(f"study {path}: {error}") from None


def _check_fields(path: Path, field: str, fields: Fields) -> None:
    for name in fields:
        taken = next((own for own in _OURS if name == own or name.startswith(f"{own}.")), None)
        if taken is not None:
            raise UserError(f"study {path}: {field}: {name} is set by the study for each run. Leave it out.")


def _problem(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    what = error["msg"].removeprefix("Value error, ")
    return f"  - {where}={error['input']!r}: {what}" if error["type"] != "missing" else f"  - {where}: must be given"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
