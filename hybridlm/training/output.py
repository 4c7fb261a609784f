"""Output that cannot stop a run: its terminal may go, its pipe may lose the reader, its disk may be full.

What a run shows is for whoever looks; the record is metrics.jsonl. So a text that cannot be written is dropped, and
SIGHUP, which a terminal sends as it goes and which ends a process by default, only says so.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TextIO

_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}
"""Errors after which nobody will read this output again. A full disk is none of them."""


class LastingOutput:
    """A text stream for rich's Console whose `write` and `flush` never raise. stream None: nothing is shown.

    Once the reader has gone, the file descriptor leads to the null device, and so does that of stderr where both led to
    the same place: whatever else prints later (another library, the interpreter as it ends) does not fail either.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self._numbers = _descriptors(stream)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("there is no output")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        try:
            if self._stream is not None:
                self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError) as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def end(self) -> None:
        """The last flush: what cannot be written now is dropped for good, so that no other flush of the process, such
        as that of the interpreter as it ends, fails for it."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._let_go()

    def _failed(self, error: OSError | ValueError) -> None:
        if not isinstance(error, OSError) or error.errno in _GONE:
            self._let_go()

    def _let_go(self) -> None:
        self._stream = None
        for number in self._numbers:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)


def last_words(*lines: str) -> None:
    """What a finished run says on stdout before the process ends. The run is no worse where nobody can read it."""
    output = LastingOutput(sys.stdout)
    output.write("\n".join(lines) + "\n")
    output.end()


class Hangup:
    """`with Hangup() as hangup`: SIGHUP sets `hangup.signalled` and ends nothing. A handler that is there already, and
    `nohup`, stay as they are."""

    def __init__(self) -> None:
        self.signalled = False
        self._before: object = None

    def __enter__(self) -> Hangup:
        main = threading.current_thread() is threading.main_thread()  # elsewhere Python does not allow handlers
        if main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            self._before = signal.signal(signal.SIGHUP, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)  # pyright: ignore[reportArgumentType]
            self._before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True  # said at the next step: a handler must not print


def _descriptors(stream: TextIO | None) -> list[int]:
    """The file descriptor of the process's own output, and that of stderr where it leads to the same place; none for
    any other stream."""
    if stream is None or stream is not sys.stdout:
        return []
    try:
        ours, other = os.fstat(stream.fileno()), os.fstat(2)
    except (OSError, ValueError):
        return []
    same = (ours.st_dev, ours.st_ino, ours.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev)
    return [stream.fileno(), 2] if same else [stream.fileno()]
