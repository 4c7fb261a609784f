"""Errors a user can put right.

Everything that checks what a user gave (a configuration key, a file, a folder) raises `UserError`. Its text names the
field, the value, what is allowed and what to do, so that the message alone is enough. A bug raises anything else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean"]


class UserError(ValueError):
    """Something the user can put right. The CLI prints it as one message and exits with code 2."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the allowed word nearest to `word`, or `""` where none is near.

    Upper and lower case are not told apart in the comparison. The word returned is spelt as in `allowed`.
    """
    by_lower = {str(name).lower(): str(name) for name in allowed}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""
