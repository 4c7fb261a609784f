"""Recipes: YAML file + dotted overrides -> PretrainConfig, with every problem reported at once.

YAML is read with YAML 1.2's plain values (plain_yaml.py). Types are strict: "20" is no integer, true is no number. Each
problem names the dotted field, the value, what is allowed and what the field means.
"""

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedConfig

from hybridlm import HybridLMConfig
from hybridlm.errors import UserError, did_you_mean
from hybridlm.training.plain_yaml import yaml_value
from hybridlm.training.sections import FROM_TOKENIZER, PretrainConfig

__all__ = ["PretrainConfig", "config_help", "config_yaml", "load_config", "read_yaml", "settings", "yaml_value"]

_ADAPTER = TypeAdapter(PretrainConfig)


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> PretrainConfig:
    """The recipe at `path` (None: all defaults) with overrides such as `"training.steps=20"`, values written as YAML.

    Without `run.name` the run is named after the file. Raises UserError that lists every problem.
    """
    values = read_yaml(path) if path is not None else {}
    problems = [problem for override in overrides or [] for problem in _override(values, override)]
    if path is not None and isinstance(values.setdefault("run", {}), dict):
        values["run"].setdefault("name", Path(path).stem)
    config = None
    try:
        # JSON mode: lists may become tuples and paths may be strings, while scalars stay strict.
        config = _ADAPTER.validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors(include_url=False)]
    if problems or config is None:
        where = str(path) if path is not None else "the recipe"
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{where}: {count}.\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def settings(config: PretrainConfig) -> dict[str, Any]:
    """The recipe as plain dictionaries, lists, strings and numbers."""
    return _ADAPTER.dump_python(config, mode="json")


def config_yaml(config: PretrainConfig) -> str:
    """The resolved recipe as YAML; `load_config` of it gives an equal PretrainConfig."""
    return yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True, width=120)


def config_help() -> str:
    """Every field of a recipe with its type, default and meaning, as text."""
    lines = ["Fields of a recipe (YAML), or overrides as SECTION.FIELD=VALUE:", ""]
    for name, field, kind in _walk(PretrainConfig):
        default = "" if field is None else f" = {field}"
        lines.append(f"  {name} ({kind[0]}){default}")
        lines.append(f"      {kind[1]}")
    return "\n".join(lines)


def read_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """A YAML file that holds a mapping; empty where the file is. what: how messages call it. Raises UserError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        example = ", e.g. --config configs/debug/austen_rglru_bmru.yaml" if what == "recipe" else ""
        raise UserError(f"No {what} at {path}. Give the path of a YAML file{example}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the {what} {path}: {error}. It must be a YAML text file in UTF-8.") from None
    try:
        values = yaml_value(text)
    except yaml.YAMLError as error:
        raise UserError(f"The {what} {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"The {what} {path} holds {type(values).__name__}; it must be a mapping with "
            + ("sections such as 'model:' and 'data:'." if what == "recipe" else "names such as 'models:'.")
        )
    return values


def _override(values: dict[str, Any], override: str) -> Iterator[str]:
    """Sets one dotted override in `values`; yields what is wrong with it."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        recipe = f". A recipe is given as --config {override}" if override.endswith((".yaml", ".yml")) else ""
        yield f"override {override!r}: write it as SECTION.FIELD=VALUE, e.g. training.steps=20{recipe}"
        return
    try:
        value = yaml_value(text)
    except yaml.YAMLError:
        yield f"override {override!r}: the value is not valid YAML; quote it"
        return
    parts = name.strip().split(".")
    if not all(parts):
        yield f"override {override!r}: a name is missing beside a dot; write it as SECTION.FIELD=VALUE"
        return
    place: Any = values
    for depth, part in enumerate(parts):
        key: Any = part
        if isinstance(place, list):
            key = int(part) if part.isdigit() and int(part) < len(place) else None
            if key is None:
                inside, most = ".".join(parts[:depth]), len(place) - 1
                yield f"override {override!r}: {inside} is a list; its entries are {inside}.0 to {inside}.{most}"
                return
        elif not isinstance(place, dict):
            yield f"override {override!r}: {'.'.join(parts[:depth])} is {_shown(place)}, which has no fields"
            return
        if depth == len(parts) - 1:
            place[key] = value
            return
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]


def _explain(error: Any) -> str:
    """One problem as text: field = value: what is allowed. (Meaning.)"""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part in _VARIANTS)]
    name = ".".join(str(part) for part in location) or "recipe"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(name, location, error["input"])
    if error["type"].startswith("missing"):
        return f"{name}: must be given. ({_meaning(location)})"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # of a section as a whole
        return f"{name}: {message.rstrip('.')}."
    meaning = _meaning(location)
    message = _ALLOWED.get(error["type"], message[0].lower() + message[1:])
    return f"{name}={_shown(error['input'])}: {message}." + (f" ({meaning})" if meaning else "")


_ALLOWED = {
    "string_type": "must be text; a number is text in quotes that YAML sees, as \"'7'\"",
    "tuple_type": "must be a list, as [0.9, 0.95]",
    "list_type": "must be a list, as [a, b]",
    "dict_type": "must be a mapping, as {field: value}",
    "dataclass_type": "must be a section, as {field: value}",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}
"""What pydantic says in the words of JSON, in those of YAML."""


def _shown(value: Any) -> str:
    """A value as a recipe would have it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _unknown(name: str, location: list[Any], value: Any) -> str:
    """A field that there is not: what was meant, and what there is."""
    allowed = [field.name for field in dataclasses.fields(_section(location[:-1]) or PretrainConfig)]
    inside = ".".join(str(part) for part in location[:-1]) or "a recipe"
    wrong = str(location[-1])
    hint = did_you_mean(wrong, allowed)
    elsewhere = [known for known, _, _ in _walk(PretrainConfig) if known.rpartition(".")[2] == wrong]
    if elsewhere:
        hint = f"; did you mean {' or '.join(repr(known) for known in elsewhere)}?"
    return f"{name}={_shown(value)}: no such field{hint or '.'} Fields of {inside}: {', '.join(allowed)}."


_VARIANTS = {"int", "float", "str", "constrained-int", "constrained-float", "constrained-str"}
"""What pydantic puts into a location to name the branch of a union."""


def _section(location: list[Any]) -> Any:
    """The dataclass at `location`, or None."""
    kind: Any = PretrainConfig
    for part in location:
        if isinstance(part, int):
            continue
        found = _pydantic_fields(kind).get(part)  # whose annotations are types, where the class has texts
        kind = None if found is None else _dataclass_in(found.annotation)
        if kind is None:
            return None
    return kind


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass in `X`, `X | None`, `list[X]`, `Annotated[X, ...]`; None if there is none."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := _dataclass_in(part)) is not None), None)


def _meaning(location: list[Any]) -> str:
    names = [part for part in location if not isinstance(part, int)]
    section = _section(names[:-1]) if names else None
    field = _pydantic_fields(section).get(names[-1]) if section is not None else None
    return " ".join((field.description or "").split()) if field is not None else ""


def _pydantic_fields(section: Any) -> dict[str, Any]:
    return getattr(section, "__pydantic_fields__", {})


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, str | None, tuple[str, str]]]:
    """(dotted name, default or None, (type, meaning)) of every field."""
    for name, field in _pydantic_fields(section).items():
        meaning = " ".join((field.description or "").split())
        inner = _dataclass_in(field.annotation)
        if inner is not None and get_origin(field.annotation) is not list:
            yield prefix + name, None, ("section", meaning)
            yield from _walk(inner, f"{prefix}{name}.")
            continue
        default = None if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=str)
        yield prefix + name, default, (_type_name(field.annotation), meaning)
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.N.")
        if prefix + name == "model":
            yield from _walk_model()


def _walk_model() -> Iterator[tuple[str, str | None, tuple[str, str]]]:
    """The same of what `model` may hold: the fields of HybridLMConfig, which its docstring explains."""
    own = {field.name: field for field in dataclasses.fields(HybridLMConfig)}
    for name in (*PreTrainedConfig.__dataclass_fields__, *FROM_TOKENIZER, "format_version"):
        own.pop(name, None)
    meanings, names = dict.fromkeys(own, ""), []
    for line in inspect.cleandoc(HybridLMConfig.__doc__ or "").splitlines():
        entry = re.match(r" +((?:\w+(?: \(\w+\))?, )*\w+(?: \(\w+\))?): (.*)", line)
        if entry is not None:
            names, line = re.findall(r"\w{2,}", entry[1]), entry[2]
        elif not line.startswith("    "):
            names = []  # a heading
        for name in set(names) & set(own):
            meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    for name, field in own.items():
        yield f"model.{name}", json.dumps(field.default, default=str), (_type_name(field.type), meanings[name])


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("null" if part is type(None) else _type_name(part) for part in args))
    if origin is Literal:
        return "|".join(str(part) for part in args)
    if origin in (list, tuple):
        return "list of " + ", ".join(_type_name(part) for part in args if part is not Ellipsis)
    if is_typeddict(annotation):
        return "mapping"
    plain = {int: "integer", float: "number", str: "text", bool: "true/false", dict: "mapping", Path: "path"}
    return plain.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
