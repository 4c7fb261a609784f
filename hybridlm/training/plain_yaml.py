"""YAML as everything here reads it: plain values, and nothing that harms.

The values are YAML 1.2's: `lr: 2e-3` is a number and `mixed_precision: no` a word (to PyYAML they are text and false).
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain values: 2e-3 is a number, `no` a word, a date a text; and no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def yaml_value(text: str) -> Any:
    """A value as recipes write it. Raises yaml.YAMLError as `plain_value`, and for the character NUL."""
    value = plain_value(text)
    if any(isinstance(one, str) and "\0" in one for one in _entries(value)):
        raise yaml.YAMLError("it holds the character NUL, which no name or path can")
    return value


def plain_value(text: str) -> Any:
    """What YAML says, to be shown. Raises yaml.YAMLError, also for what PyYAML fails at in other ways, for names that
    are no plain values, and for more entries than anybody writes, such as aliases of aliases make, or one that holds
    itself."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except _UNREADABLE as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None
    for one in _entries(value):
        odd = [key for key in one if not isinstance(key, (str, int, float, type(None)))] if type(one) is dict else []
        if odd:
            raise yaml.YAMLError(f"it holds the name {odd[0]!r:.80}, which is no text")
    return value


_UNREADABLE = (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, RecursionError)
_MOST_ENTRIES = 100_000


def _entries(value: Any) -> Iterator[Any]:
    """It, and all that it holds, names included."""
    left, seen = [value], 0
    while left:
        one = left.pop()
        seen += 1
        if seen > _MOST_ENTRIES:
            raise yaml.YAMLError(f"it holds itself, or more than {_MOST_ENTRIES:,} entries")
        yield one
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, (list, tuple, set)):
            left += one
