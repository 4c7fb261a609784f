"""What is shown while data is prepared: a bar on a terminal, a line every so often elsewhere.

Documents, megabytes of text per second, and the remaining time where the total is known: the first reading finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_REFRESH = 0.1  # seconds between updates of the bar


class PrepareProgress:
    """`with PrepareProgress(log) as progress`: `phase`, then `advance` for each document.

    every: seconds between lines where the console is no terminal.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        *,
        console: Console | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.log, self.every, self._clock = log, every, clock
        console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[documents]:,} documents"),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
        self._task = None
        self._begin("", None)

    def __enter__(self) -> PrepareProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.pause()

    def _begin(self, title: str, total: int | None) -> None:
        self.title, self.total = title, total
        self.documents = self.n_bytes = 0
        self._shown = (self._clock(), 0)

    def pause(self) -> None:
        """Takes the bar away until the next phase."""
        if self._bar is not None:
            self._bar.stop()
            if self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None

    def phase(self, title: str, total: int | None = None) -> None:
        """Something new begins: `total` bytes of text, None where that is not known."""
        self.pause()
        self._begin(title, total)
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=total, documents=0)
            self._bar.start()

    def advance(self, n_bytes: int) -> None:
        """A document of so many bytes is done."""
        self.documents += 1
        self.n_bytes += n_bytes
        now = self._clock()
        seconds = now - self._shown[0]
        if seconds < (self.every if self._bar is None else _REFRESH):
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.n_bytes, documents=self.documents)
        elif self._bar is None:
            self.log(self._line((self.n_bytes - self._shown[1]) / max(seconds, 1e-9)))
        self._shown = (now, self.n_bytes)

    def _line(self, rate: float) -> str:
        text = f"{self.title}: {self.documents:,} documents, {self.n_bytes / 1e6:,.1f}"
        text += " MB" if self.total is None else f" of {self.total / 1e6:,.1f} MB"
        text += f", {rate / 1e6:,.2f} MB/s"
        if self.total is not None and rate > 0:
            text += f", ETA {timedelta(seconds=round((self.total - self.n_bytes) / rate))}"
        return text
