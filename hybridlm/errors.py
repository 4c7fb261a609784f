"""Errors a user can put right.

Everything that checks what a user gave (a configuration key, a file, a folder) raises `UserError`. Its text names the
field, the value, what is allowed and what to do, so that the message alone is enough. A bug raises anything else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["OtherSettingsError", "UserError", "did_you_mean", "install_command"]


class UserError(ValueError):
    """Something the user can put right. The CLI prints it as one message and exits with code 2."""


class OtherSettingsError(UserError):
    """A folder holds what was made with other settings. found: which, with the white space behind it; advice: what to
    do where the settings themselves are chosen, which a command with a name of its own for them may replace."""

    def __init__(self, found: str, advice: str):
        super().__init__(found, advice)
        self.found, self.advice = found, advice

    def __str__(self) -> str:
        return self.found + self.advice


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the allowed word nearest to `word`, or `""` where none is near.

    Upper and lower case are not told apart in the comparison. The word returned is spelt as in `allowed`.
    """
    by_lower = {str(name).lower(): str(name) for name in allowed}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def install_command(extra: str) -> str:
    """How an optional part of the package is installed: from a clone, since no package index has it."""
    return f"pip install -c constraints.txt '.[{extra}]' in the folder that hybridlm was cloned to"
