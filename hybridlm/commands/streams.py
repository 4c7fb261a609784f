"""The process's own stdout and stderr where they are closed, full, without a reader or of an encoding that lacks a
character: a command ends in its exit code and at most one message, never in a traceback, and never in the 120 of an
interpreter that cannot empty its buffers."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper


def open_closed_streams() -> None:
    """What the caller closed (`>&-`; Python then has None) leads to the null device, as `>/dev/null` does. The first
    file that is opened would else get its number, and whatever a library prints would go into it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process


def escape_what_stdout_lacks() -> None:
    """A character that its encoding does not have (a locale's, or PYTHONIOENCODING's) is written as \\xe9, as on
    stderr, where Python would raise an error in the middle of a text."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """A line on stderr, if that can be written."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def output_fault() -> str | None:
    """Why nothing can be written to stdout; None: a line was written. To be asked after an OSError, which does not say
    what it was raised for."""
    try:
        print(flush=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def settle() -> None:
    """Empties the buffers of stdout and stderr; what cannot be written is dropped. Python does the same as it ends, but
    where that fails, it says so and replaces the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
