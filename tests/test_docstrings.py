"""Every public name says what it is."""

import inspect
from importlib import import_module

import pytest

PUBLIC = ("hybridlm", "hybridlm.data", "hybridlm.ops", "hybridlm.training")
"""Modules that list what they offer."""


def documented():
    """(qualified name, object) of what the modules list, and of the public methods and properties that are our own."""
    for module in PUBLIC:
        for name in import_module(module).__all__:
            found = getattr(import_module(module), name)
            if isinstance(found, (str, tuple)):
                continue  # a constant, whose text stands below it in the source
            yield f"{module}.{name}", found
            if inspect.isclass(found):
                yield from members(f"{module}.{name}", found)


def members(where, kind):
    for base in kind.__mro__:
        if base.__module__.startswith("hybridlm"):
            for name, value in vars(base).items():
                if not name.startswith("_") and (
                    inspect.isfunction(value) or isinstance(value, (property, classmethod))
                ):
                    yield f"{where}.{name}", getattr(kind, name)


@pytest.mark.parametrize(
    ("name", "found"), list(documented()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_it_says_what_it_is(name, found):
    """Methods of transformers that are only filled in may have its text."""
    text = inspect.getdoc(found)
    assert text is not None, name
    assert len(text.split()) >= 3, name


def test_there_is_something_to_look_at():
    names = {name for name, _ in documented()}
    assert {"hybridlm.HybridLMForCausalLM", "hybridlm.HybridLMForCausalLM.load_cache", "hybridlm.ops.lru_scan"} <= names
    assert len(names) > 60
