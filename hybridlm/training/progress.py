"""What is shown while a run goes on: a progress bar on a terminal, plain lines elsewhere, nothing on other processes.

"Elsewhere" is a file, a pipe, and a terminal that cannot move its cursor (TERM=dumb). The bar shows what fits: on a
narrow terminal the bar itself goes, then the rate. No output, and none that fails, stops a run (output.py).
"""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from hybridlm.training.output import LastingOutput
from hybridlm.training.pace import Pace
from hybridlm.training.training_states import NAMES


class RunProgress:
    """`with RunProgress(...) as progress`: `update` after each step, `log` for anything else."""

    def __init__(self, start: int, total: int, *, visible: bool, print_every: int, console: Console | None = None):
        self.total, self.visible, self.print_every = total, visible, print_every
        self.console = console or _console()
        self._bar: Progress | None = None
        if visible and self.console.is_interactive:
            columns = (
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                *([BarColumn(bar_width=min(40, self.console.width - 85))] if self.console.width >= 95 else []),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
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

    def update(self, row: dict[str, Any], pace: Pace) -> None:
        """A step is done: its metrics row, and the pace that has been told of it."""
        if not self.visible:
            return
        remaining = pace.remaining()
        loss, left = f"loss {row['loss']:.3f}", f"ETA {'?' if remaining is None else clock(remaining)}"
        rate = f"{pace.real_rate:,.0f} tokens/s"
        if "mfu" in row:
            rate += f"  MFU {row['mfu']:.0%}"
        if self._bar is not None:
            width = self.console.width
            text = f"{loss}  {rate}  {left}" if width >= 70 else f"{loss}  {left}" if width >= 45 else left
            self._bar.update(self._task, completed=row["step"], text=text)
        elif row["step"] % self.print_every == 0 or row["step"] == self.total:
            norm = "overflow" if row["grad_norm"] is None else f"{row['grad_norm']:.2f}"
            states = [f"  {name} {row[name]:.2f}" for name in NAMES if row.get(name) is not None]
            self.log(
                f"step {row['step']}/{self.total}  {loss}  {rate} ({pace.step_rate:,.0f} in steps)  {left}  "
                f"lr {row['lr']:.2e}{''.join(states)}  gradient {norm}"
            )

    def log(self, text: str) -> None:
        """Prints `text`, above the bar where there is one."""
        if self.visible:
            self.console.print(text, markup=False)


def _console() -> Console:
    """The process's output. Whether it is a terminal is asked of it alone: FORCE_COLOR, which build servers set, would
    have rich draw a bar into a file."""
    output = LastingOutput(sys.stdout)
    terminal = None if output.isatty() else False
    file: Any = output
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """75.2 -> "1:15"; 3700 -> "1:01:40"; 200000 -> "2 d 7:33:20"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
