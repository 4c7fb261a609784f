"""What can happen to an input, as strategies of hypothesis: to a value of JSON, to a text, to the bytes of a file."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = [0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**400, -(2**64), 0.5, -0.0, 1e-320, 1e308]
ODD_TEXTS = [
    "", " ", "None", "true", "../x", "/etc/passwd", "a" * 5000, "é", "\u2028", "\x00", "{}", "%s", "-1", "1e999", "nan",
    "rglru", "(lru bmru)*2", "float32", "auto", "hybridlm", "llama", "owner/model", "~", "[1,", "📖",
]  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(ODD_NUMBERS)
    | st.integers()
    | st.floats()
    | st.sampled_from(ODD_TEXTS)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
"""Whatever JSON can say."""

DEEP = st.integers(1, 4000).map(lambda depth: "[" * depth)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in [(*path, key), *_places(one, (*path, key))]]


@st.composite
def changed(draw: Any, base: Any) -> Any:
    """`base`, a dictionary of JSON, with one to three of its entries replaced, removed or moved, or one added."""
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            break
        place = draw(st.sampled_from(places))
        at = value
        for key in place[:-1]:
            at = at[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "swap"]))
        if how == "replace":
            at[place[-1]] = draw(VALUES)
        elif how == "remove":
            del at[place[-1]]
        elif how == "add" and isinstance(at, dict):
            at[draw(st.text(max_size=6) | st.sampled_from(ODD_TEXTS))] = draw(VALUES)
        else:
            other, here = draw(st.sampled_from(places)), value
            for key in other:
                here = here[key] if isinstance(here, (dict, list)) and _has(here, key) else None
            at[place[-1]] = copy.deepcopy(here)
    return value


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """The bytes of a file: cut off, with bytes changed, put in or left out, or others altogether."""
    how = draw(st.sampled_from(["flip", "flip", "flip", "cut", "insert", "leave out", "other", "longer"]))
    if how == "other" or not data:
        return draw(st.binary(max_size=200))
    at = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "longer":
        return data + draw(st.binary(min_size=1, max_size=40))
    if how == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
    if how == "leave out":
        return data[:at] + data[at + draw(st.integers(1, 8)) :]
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # Most of what decides is at the beginning: a header.
        place = draw(st.integers(0, min(len(data), 400) - 1) | st.integers(0, len(data) - 1))
        found[place] = draw(st.integers(0, 255))
    return bytes(found)


def json_files(base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """What may stand in a JSON file that was to hold `base`."""
    texts = changed(base).map(json.dumps) | VALUES.map(json.dumps) | DEEP
    return texts.map(str.encode) | damaged(json.dumps(base).encode()) | st.binary(max_size=50)
