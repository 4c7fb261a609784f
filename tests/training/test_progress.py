"""What is shown: a bar on a terminal, plain lines elsewhere, nothing on other processes."""

import io

import pytest
from rich.console import Console

from hybridlm.training.progress import RunProgress, clock


def shown(terminal: bool, visible: bool = True, steps: int = 4) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    with RunProgress(0, 4, visible=visible, print_every=2, console=console) as progress:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 2.5, "lr": 1e-3, "epsilon": 0.25, "grad_norm": None if step == 2 else 0.5}
            progress.update(row, step_tokens=100, step_seconds=2.0)
        progress.log("a [bold] word")
    return out.getvalue()


def test_plain_lines():
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "step 2/4  loss 2.500  50 tokens/s  ETA 0:04  lr 1.00e-03  epsilon 0.25  gradient overflow",
        "step 4/4  loss 2.500  50 tokens/s  ETA 0:00  lr 1.00e-03  epsilon 0.25  gradient 0.50",
        "a [bold] word",
    ]


def test_bar():
    text = shown(terminal=True)
    for part in ("4/4", "loss 2.500", "50 tokens/s", "ETA 0:00", "a [bold] word"):
        assert part in text


def test_other_processes_are_silent():
    assert shown(terminal=True, visible=False) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (75.2, "1:15"), (3700, "1:01:40")])
def test_clock(seconds, text):
    assert clock(seconds) == text
