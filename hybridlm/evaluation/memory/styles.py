"""How a mixer looks: the same colour, marker and line in every picture."""

from __future__ import annotations

from dataclasses import dataclass

from hybridlm.evaluation.memory.families import MIXERS


@dataclass(frozen=True)
class Style:
    color: str
    marker: str
    line: str


_STYLES = {
    "bmru": Style("#d62728", "o", "-"),
    "cmru": Style("#ff7f0e", "s", "-"),
    "acmru": Style("#b8860b", "D", "--"),
    "fqbmru": Style("#e377c2", "^", "-"),
    "lru": Style("#1f77b4", "o", "--"),
    "rglru": Style("#17becf", "s", "-"),
    "mingru": Style("#2ca02c", "D", "-"),
    "mamba2": Style("#0b3d91", "^", "-"),
    "attention": Style("#222222", "X", "-"),
    "gru": Style("#7f7f7f", "v", "--"),
    "rglru+bmru": Style("#8c564b", "P", "-"),
    "lru bmru": Style("#9467bd", "*", "-"),
}
"""Memory recurrent units are warm, linear recurrences cold, attention and the GRU grey, hybrids brown and violet."""
assert tuple(_STYLES) == MIXERS

_COLORS = ("#556b2f", "#ff1493", "#00ced1", "#cd853f", "#6a5acd", "#a0a000")
_MARKERS = ("h", "<", ">", "p", "d", "8", "H")


def styles(mixers: list[str]) -> dict[str, Style]:
    """One for each mixer; those that have none of their own get the next free one."""
    others = [mixer for mixer in mixers if mixer not in _STYLES]
    free = {
        mixer: Style(_COLORS[at % len(_COLORS)], _MARKERS[at % len(_MARKERS)], ":") for at, mixer in enumerate(others)
    }
    return {mixer: _STYLES.get(mixer) or free[mixer] for mixer in mixers}
