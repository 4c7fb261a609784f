"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, leave. A second signal leaves at once.

The handler only sets a flag; the loop looks at it between steps and all processes agree on it there.
"""

import signal
import threading
from pathlib import Path
from types import FrameType


class RunInterrupted(SystemExit):
    """The run was stopped by a signal and its checkpoint is on disk. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, code: int, step: int, checkpoint: Path):
        super().__init__(code)
        self.step = step
        self.checkpoint = checkpoint


class StopFlag:
    """`with StopFlag() as stop:` catches SIGINT and SIGTERM; `stop.signal` is 0 or the signal's number."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
