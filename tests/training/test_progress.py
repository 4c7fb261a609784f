"""What is shown: a bar on a terminal, plain lines elsewhere, nothing on other processes."""

import io
import re
import sys

import pytest
from rich.console import Console

from hybridlm.training import progress
from hybridlm.training.pace import Pace
from hybridlm.training.progress import RunProgress, clock


def run(console, visible=True, total=4):
    """Four steps of 2 seconds and 100 tokens, with a pause of 2 seconds behind each second one."""
    time = 0.0
    pace = Pace(0, total, {"validation": 2}, now=lambda: time)
    with RunProgress(0, total, visible=visible, print_every=2, console=console) as shown:
        for step in range(1, 5):
            row = {"step": step, "loss": 2.5, "lr": 1e-3, "epsilon": 0.25, "grad_norm": None if step == 2 else 0.5}
            time += 2.0
            pace.step(step, 100, 2.0)
            shown.update(row, pace)
            time += 2.0 * (step % 2 == 0)
        shown.log("a [bold] word")


def shown(terminal: bool, visible: bool = True, width: int = 120, total: int = 4, **environ: str) -> str:
    out = io.StringIO()
    run(
        Console(file=out, force_terminal=terminal, width=width, highlight=False, soft_wrap=True, _environ=environ),
        visible,
        total,
    )
    return out.getvalue()


LINES = [
    "step 2/4  loss 2.500  50 tokens/s (50 in steps)  ETA 0:04  lr 1.00e-03  epsilon 0.25  gradient overflow",
    "step 4/4  loss 2.500  40 tokens/s (50 in steps)  ETA 0:00  lr 1.00e-03  epsilon 0.25  gradient 0.50",
    "a [bold] word",
]


def test_plain_lines():
    assert shown(terminal=False).splitlines() == LINES


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines():
    assert shown(terminal=True, TERM="dumb").splitlines() == LINES


def test_bar():
    text = shown(terminal=True)
    for part in ("4/4", "loss 2.500", "40 tokens/s", "ETA 0:00", "a [bold] word"):
        assert part in text


@pytest.mark.parametrize(
    ("width", "parts"), [(95, "━ loss rate ETA"), (80, "loss rate ETA"), (50, "loss ETA"), (30, "ETA")]
)
def test_a_narrow_terminal_shows_what_fits_whole(width, parts):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True, width=width, total=100_000))
    line = [line for line in re.split(r"[\r\n]+", text) if "/100000" in line][-1]
    assert len(line.rstrip()) <= width
    assert "…" not in line
    named = {"━": "━", "loss": "loss 2.500", "rate": "40 tokens/s", "ETA": "ETA 3 d"}
    assert [part for part, words in named.items() if words in line] == parts.split()


def test_other_processes_are_silent():
    assert shown(terminal=True, visible=False) == ""


def test_a_file_gets_plain_lines_whatever_a_build_server_sets(tmp_path, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        run(progress._console())
        assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == LINES  # before the file is closed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (75.2, "1:15"), (3700, "1:01:40"), (200_000, "2 d 7:33:20")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
