"""Ctrl-C, SIGTERM, SIGUSR1: finish the step, save a checkpoint, leave. A second signal leaves at once.

The handler only sets a flag; the loop looks at it between steps, and a validation between its batches, and all
processes agree on it there. A validation that is given up is done again by the session that goes on. Launchers and
terminals often deliver one signal twice in a moment (Ctrl-C reaches every process of the terminal, and torchrun hands
it on besides), so what follows within `AGAIN` seconds is the same signal.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what schedulers send some time before they end a job (`sbatch --signal=USR1@120`)."""
AGAIN = 1.0


class RunInterrupted(SystemExit):
    """The run was stopped by a signal and its checkpoint is on disk.

    Exit code 128 + the signal's number: 130 (Ctrl-C), 143 (SIGTERM), 138 (SIGUSR1).
    """

    def __init__(self, code: int, step: int, checkpoint: Path):
        super().__init__(code)
        self.step = step
        self.checkpoint = checkpoint


class StopFlag:
    """`with StopFlag() as stop:` catches STOPPING; `stop.signal` is 0 or the signal's number."""

    def __init__(self) -> None:
        self.signal = 0
        self._when = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._when = number, time.monotonic()
        elif time.monotonic() - self._when > AGAIN:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            os._exit(128 + number)  # nothing half-written stands under a final name


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """For work that cannot be asked to stop between its steps: SIGTERM raises SystemExit(143) inside, as Ctrl-C raises
    KeyboardInterrupt, so that what is half-done is cleared away. A handler that somebody else has set stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    first: float | None = None

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise SystemExit(128 + number)
        if time.monotonic() - first > AGAIN:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
