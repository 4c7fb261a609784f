"""Lengths in tokens as people write them: 512, 2k, 128k, 1m; k is 1,024 and m is 1,048,576."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath

from hybridlm.errors import UserError

_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
_LENGTH = re.compile(r"([+-]?\d+)([km]?)", re.IGNORECASE)


def read_tokens(field: str, text: str) -> list[int]:
    """ "512,2k" -> [512, 2048], whatever their order and sign. Raises UserError where there is no such number."""
    found = []
    for part in text.split(","):
        match = _LENGTH.fullmatch(part.strip())
        if match is None:
            raise UserError(
                f"{field}={text!r}: {part.strip()!r} is no number of tokens. Give whole numbers with commas between "
                "them, as 512,2k,8k; k is 1,024 and m is 1,048,576."
            )
        found.append(int(match[1]) * _UNITS[match[2].lower()])
    return found


def read_lengths(text: str) -> list[int]:
    """The same. Raises UserError: no numbers, fewer than two, below 2 tokens, not ascending."""
    return check_lengths(read_tokens("lengths", text))


def check_lengths(lengths: Sequence[int]) -> list[int]:
    """The same. Raises UserError: fewer than two, below 2 tokens, not ascending."""
    for length in lengths:
        if length < 2:
            raise UserError(
                f"lengths: {length:,} is too short; must be at least 2 tokens, as half of them are predicted."
            )
    for before, length in pairwise(lengths):
        if length <= before:
            raise UserError(
                f"lengths: {length:,} comes after {before:,}. Give each length once, the shortest first, as 512,2k,8k."
            )
    if len(lengths) < 2:
        raise UserError("lengths: one length has none to be compared with. Give at least two, as 512,2k,8k.")
    return list(lengths)


def shown(length: int) -> str:
    """2048 -> "2k", 1000 -> "1,000"."""
    for unit in ("m", "k"):
        if length % _UNITS[unit] == 0:
            return f"{length // _UNITS[unit]}{unit}"
    return f"{length:,}"


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """The ends of the paths, with as many folders of each as make all of them differ; paths must be different."""
    paths = [PurePath(checkpoint).parts for checkpoint in checkpoints]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return list(checkpoints)
