"""How the suite trains: the same for every mixer and task, unless `--set` changes a field."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from transformers import PreTrainedConfig

from hybridlm.errors import UserError, did_you_mean
from hybridlm.evaluation.memory.formal import TRAINED
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.training.config import yaml_value
from hybridlm.training.sections import EpsilonConfig, ExplorationConfig, OptimizerConfig, ScheduleConfig

_FROM_THE_SUITE = {
    "pattern", "vocab_size", "hidden_size", "format_version", "use_cache", "tie_word_embeddings", "pad_token_id",
    "bos_token_id", "eos_token_id", "classifier_dropout",
}  # fmt: skip
"""Fields of `HybridLMConfig` that the mixer, the task and the recipe decide, or that change nothing here."""


@dataclasses.dataclass(frozen=True)
class NamedRecipe:
    """fields: what differs from the standard recipe. mixer: which it is made for. about: what it is for, in
    Markdown."""

    fields: dict[str, Any]
    mixer: str
    about: str


RECIPES = {
    "finite-state": NamedRecipe(
        {
            "layers": 1,
            "conv_kernel": 0,
            "intermediate_size": 0,
            "output_gate": False,
            "nfsm_heads": 16,
            "exploration_start": 0.0,
            "length_start": 2,
            "to_first_error": True,
            "lr": 4e-3,
        },
        "nfsm",
        "For `nfsm` and automata. One layer without convolution, MLP and gate, whose answers add up what its heads "
        "emit and the last letter, and which `certify` can prove head by head, of models that `--keep` has kept. "
        "Sequences begin short, the loss counts each up to its first wrong answer, and there is no noise on the "
        "transitions.",
    )
}
"""Recipes with a name."""


_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(config=_STRICT, frozen=True)
class Recipe:
    """Everything besides task, mixer and seed that decides a result."""

    width: Annotated[int, Field(ge=1)] = 64
    """D, the width of the stack, and N of its recurrences; the MLP is twice as wide."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the stack; a mixer is repeated until there are so many."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; null: as the task says."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate: linear warm-up over the first twentieth, half a cosine to a tenth."""
    recurrent_lr: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the learning rate of the parameters inside cells; of `mamba2` decays, skips and time steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of the matrices."""
    epsilon_start: Annotated[float, Field(ge=0, le=1)] = 1.0
    """epsilon of `bmru` at the start; 0: bistable from the first step."""
    epsilon_hold: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the run in which epsilon stays there."""
    epsilon_zero: Annotated[float, Field(ge=0, le=1)] = 0.17
    """Share of the run at which epsilon is 0."""
    exploration_start: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the noise on the transitions of `nfsm` at the start; 0: none."""
    exploration_hold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the run in which it stays there."""
    exploration_zero: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the run at which it is 0."""
    length_start: Annotated[int, Field(ge=1, lt=TRAINED)] | None = None
    """Automata: length of the sequences at the start; it grows to the task's by equal factors in equal times, and
    of short ones there are more, so that a step has as many letters. null: the task's from the start."""
    length_full: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the run at which they have the task's length."""
    to_first_error: bool = False
    """Automata: the loss counts each sequence up to its first wrong answer; what is asked behind it depends on a state
    that may be lost."""
    longest: Annotated[int, Field(gt=TRAINED, le=2**26)] | None = None
    """Automata: length up to which the failing length is looked for; null: as the task says."""
    write_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (mean z)^2 in the loss."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other fields of `HybridLMConfig`."""

    @cached_property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(lr=self.lr, weight_decay=self.weight_decay)

    @cached_property
    def schedule(self) -> ScheduleConfig:
        return ScheduleConfig(warmup_share=0.05)

    @cached_property
    def annealing(self) -> EpsilonConfig:
        return EpsilonConfig(start=self.epsilon_start, hold=self.epsilon_hold, zero=self.epsilon_zero)

    @cached_property
    def exploring(self) -> ExplorationConfig:
        hold, zero = self.exploration_hold, self.exploration_zero
        return ExplorationConfig(start=self.exploration_start, hold=hold, zero=zero)

    def length(self, step: int, steps: int, trained: int) -> int:
        """Of the sequences of a step, where the task's own are `trained` long."""
        if self.length_start is None:
            return trained
        share = min(1.0, step / (steps * self.length_full))
        return round(self.length_start * (trained / self.length_start) ** share)

    def config(self, mixer: str, symbols: int = 1) -> HybridLMConfig:
        """The stack of a mixer. Raises UserError where the mixer, or a field, is not one."""
        layers = self._of(mixer, symbols).num_hidden_layers
        if self.layers % layers:
            raise UserError(
                f"layers={self.layers}: not a multiple of the {layers} layers of the mixer {mixer!r}, which is "
                f"repeated until there are so many. Set layers to a multiple of {layers}."
            )
        return self._of(f"({mixer})*{self.layers // layers}", symbols)

    def _of(self, pattern: str, symbols: int) -> HybridLMConfig:
        try:
            return HybridLMConfig(pattern=pattern, vocab_size=symbols, **{**self._plain(), **self.model})
        except ValueError as error:
            raise UserError(f"mixer {pattern!r}: {error}") from None

    def name(self, mixer: str) -> str:
        """The same mixer always by the same name: "rglru + bmru" is "rglru+bmru"."""
        return " ".join(self._of(mixer, 1).block_types)

    def _plain(self) -> dict[str, Any]:
        """The fields of the stack that are not at the default of `HybridLMConfig`."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_attention_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 32,
            "initializer_range": self.width**-0.5,
        }

    def changed(self) -> dict[str, Any]:
        """The fields that are not at their default; those of the model among them."""
        default = Recipe()
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) != getattr(default, name)}
        plain = {name: HybridLMConfig.__dataclass_fields__[name].default for name in self.model} | self._plain()
        return own | {name: value for name, value in sorted(self.model.items()) if value != plain[name]}

    def settings(self, mixer: str) -> dict[str, Any]:
        """Every field of the recipe and of the model, as JSON has it."""
        config = self.config(mixer)
        values = {name: getattr(self, name) for name in _OWN} | {name: getattr(config, name) for name in _MODEL}
        return json.loads(json.dumps(values))


OF_AUTOMATA = ("length_start", "length_full", "to_first_error", "longest")
"""Fields that other tasks do not have."""
_OWN = tuple(field.name for field in dataclasses.fields(Recipe) if field.name != "model")
_MODEL = tuple(
    sorted(set(HybridLMConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - _FROM_THE_SUITE)
)


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """The default recipe with some fields set. Raises UserError for a field that there is not, or a value that is not
    allowed."""
    for name in settings:
        if name not in _OWN + _MODEL:
            hint = did_you_mean(name, _OWN + _MODEL)
            raise UserError(f"set {name}: no such field{hint or '.'} Fields: {', '.join(sorted(_OWN + _MODEL))}.")
    values = {name: value for name, value in settings.items() if name in _OWN}
    values["model"] = {name: value for name, value in settings.items() if name in _MODEL}
    try:
        recipe = Recipe(**values)
        _ = recipe.annealing, recipe.exploring
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(f"set epsilon_hold, epsilon_zero: {message}.") from None
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"set {name}={settings.get(name, first['input'])!r}: {message}.") from None
    if recipe.length_start is None and "length_full" in recipe.changed():
        raise UserError(
            f"set length_full={recipe.length_full!r}: has no effect without length_start, from which sequences grow. "
            "Set that too, or leave this out."
        )
    return recipe


def named_settings(name: str | None) -> dict[str, Any]:
    """The fields of a named recipe; none for None. Raises UserError for a name that there is not."""
    if name is None:
        return {}
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES)
        raise UserError(f"recipe={name!r}: there is none{hint or '.'} Recipes: {', '.join(RECIPES)}.")
    return dict(RECIPES[name].fields)


def others_than_made_for(name: str | None, mixers: Sequence[str]) -> str | None:
    """A line that says for which mixer the named recipe is made, where some of `mixers` are others."""
    if name is None:
        return None
    made_for = RECIPES[name].mixer
    others = [mixer for mixer in mixers if made_for not in mixer.replace("+", " ").split()]
    return f"Recipe {name} is made for {made_for}; {', '.join(others)} will run with it too." if others else None


def named_recipe(changed: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The named recipe that such changes contain, all of it but two fields at most, and the changes beside it: those
    two among them."""
    for name, recipe in RECIPES.items():
        apart = [field for field, value in recipe.fields.items() if field not in changed or changed[field] != value]
        if len(apart) <= 2:
            rest = {field: value for field, value in changed.items() if field not in recipe.fields or field in apart}
            width = {field: changed[field] for field in ("width",) if field in changed}  # which others follow
            default = recipe_from(width).settings("nfsm")
            return name, {field: default[field] for field in apart} | rest
    return None, dict(changed)


def recipe_help() -> str:
    """The recipes with a name, and the fields that can be set, with default and meaning."""
    lines = ["recipes of --recipe:"]
    for name, recipe in RECIPES.items():
        fields = " ".join(f"{field}={json.dumps(value)}" for field, value in recipe.fields.items())
        about = textwrap.wrap(recipe.about.replace("`", ""), 110)
        lines += [f"  {name}", *(f"      {text}" for text in [fields, *about])]
    lines.append("fields of --set:")
    for name, field in Recipe.__pydantic_fields__.items():  # pyright: ignore[reportAttributeAccessIssue]
        if name != "model":
            lines += [f"  {name}={json.dumps(field.default)}", f"      {' '.join(field.description.split())}"]
    return "\n".join([*lines, "  and those of HybridLMConfig, such as threshold_init=0.25"])


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """`["lr=1e-3", ...]` as names and values, which are written as in a recipe of pretraining."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"set {text!r}: write it as FIELD=VALUE, e.g. lr=1e-3.")
        if name.strip() in settings:
            raise UserError(f"set {name.strip()}: given twice; give it once.")
        try:
            settings[name.strip()] = yaml_value(value)
        except yaml.YAMLError:
            raise UserError(f"set {text!r}: the value is not valid YAML; quote it.") from None
    return settings
