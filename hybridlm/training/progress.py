"""What is shown while a run goes on: a progress bar on a terminal, plain lines elsewhere, nothing on other processes.

Rate and remaining time come from the last steps alone; validation, samples and checkpoints are outside both.
"""

from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_WINDOW = 50


class RunProgress:
    """`with RunProgress(...) as progress`: `update` after each step, `log` for anything else."""

    def __init__(self, start: int, total: int, *, visible: bool, print_every: int, console: Console | None = None):
        self.total, self.visible, self.print_every = total, visible, print_every
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._bar: Progress | None = None
        if visible and self.console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("", total=total, completed=start, text="")

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, row: dict[str, Any], step_tokens: int, step_seconds: float) -> None:
        """A step is done: its metrics row, its tokens (all processes) and its wall time."""
        self._recent.append((step_tokens, step_seconds))
        if not self.visible:
            return
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        remaining = seconds / len(self._recent) * (self.total - row["step"])
        text = f"loss {row['loss']:.3f}  {tokens / max(seconds, 1e-9):,.0f} tokens/s  ETA {clock(remaining)}"
        if "mfu" in row:
            text += f"  MFU {row['mfu']:.0%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], text=text)
        elif row["step"] % self.print_every == 0 or row["step"] == self.total:
            norm = "overflow" if row["grad_norm"] is None else f"{row['grad_norm']:.2f}"
            epsilon = "" if row["epsilon"] is None else f"  epsilon {row['epsilon']:.2f}"
            self.log(f"step {row['step']}/{self.total}  {text}  lr {row['lr']:.2e}{epsilon}  gradient {norm}")

    def log(self, text: str) -> None:
        """Prints `text`, above the bar where there is one."""
        if self.visible:
            self.console.print(text, markup=False)


def clock(seconds: float) -> str:
    """75.2 -> "1:15"; 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
