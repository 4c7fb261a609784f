"""Output that fails never reaches the run."""

import errno
import io
import json
import os
import pty
import select
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from launching import launch

from hybridlm.training import progress
from hybridlm.training.config import config_yaml
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.output import Hangup, LastingOutput


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def write(self, text):
        self.calls += 1
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (BrokenPipeError(errno.EPIPE, "gone"), 1),
        (OSError(errno.EIO, "gone"), 1),
        (ValueError("I/O operation on closed file"), 1),
        (OSError(errno.ENOSPC, "disk full"), 2),  # it may have room again
        (BlockingIOError(errno.EAGAIN, "not now"), 2),
    ],
)
def test_a_failing_stream_is_tried_again_only_where_that_may_help(error, calls):
    stream = Failing(error)
    output = LastingOutput(stream)
    for _ in range(2):
        assert output.write("text") == 4
        output.flush()
    assert stream.calls == calls


def test_no_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    console = progress._console()
    console.print("text")
    assert not console.is_terminal


def test_what_the_encoding_lacks_is_replaced():
    raw = io.BytesIO()
    output = LastingOutput(io.TextIOWrapper(raw, encoding="ascii"))
    output.write("café 猫")
    output.flush()
    assert raw.getvalue() == b"caf? ?"


def test_a_pipe_without_a_reader(monkeypatch):
    """rich would end the process; later prints by anybody go nowhere instead of failing."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console = progress._console()
        console.print("read")
        assert os.read(reading, 100) == b"read\n"
        os.close(reading)
        for _ in range(2):
            console.print("not read")
        print("by anybody", flush=True)


def test_a_run_begins_though_nobody_reads(recipe, monkeypatch):
    """The recipe, the report and what is said of a resume come before the progress, and end no run either."""
    for settings in (("training.steps=2", "checkpoint.every=1"), ("training.steps=2", "validation.every=1")):
        reading, writing = os.pipe()
        os.close(reading)
        with monkeypatch.context() as patch, open(writing, "w", buffering=1, encoding="utf-8") as stream:
            patch.setattr(sys, "stdout", stream)
            result = pretrain(recipe(*settings))
        assert (result.checkpoint / "config.json").is_file()
        shutil.rmtree(result.checkpoint)


def test_sighup_sets_a_flag_and_is_put_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Hangup() as hangup:
            os.kill(os.getpid(), signal.SIGHUP)
            assert hangup.signalled
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with Hangup():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


WATCHED = """
import fcntl, os, signal, sys, termios, time
from hybridlm import cli
from hybridlm.training.journal import Journal
os.setsid()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for number in range(3):
    os.dup2(terminal, number)
os.close(terminal)
write = Journal.step
def step(self, row, *args):
    write(self, row, *args)
    if row["step"] == 5:  # until the terminal has gone
        while not self._hangup.signalled:
            time.sleep(0.05)
Journal.step = step
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_run_outlives_its_terminal(recipe, tmp_path):
    """The terminal closes in the middle of a run: the kernel sends SIGHUP, and every later write fails."""
    config = recipe("training.steps=12", "checkpoint.every=4", "logging.every=1")
    (tmp_path / "recipe.yaml").write_text(config_yaml(config), encoding="utf-8")
    ours, theirs = pty.openpty()
    command = ["-c", WATCHED, os.ttyname(theirs), "pretrain", "--config", tmp_path / "recipe.yaml"]
    running = ThreadPoolExecutor(1)
    ended = running.submit(launch, command, env={"TERM": "xterm", "COLUMNS": "100"})
    running.shutdown(wait=False)
    seen, began = b"", time.monotonic()
    while b"5/12" not in seen and time.monotonic() - began < 120:
        if select.select([ours], [], [], 1.0)[0]:
            seen += os.read(ours, 65536)
    assert b"5/12" in seen, seen[-2000:]
    os.close(theirs)
    os.close(ours)
    assert ended.result(timeout=120).returncode == 0
    rows = read_rows(config.run.path / "metrics.jsonl")
    assert [row["step"] for row in rows if "lr" in row] == list(range(1, 13))
    assert json.loads((config.run.path / "final" / "training_state" / "state.json").read_text())["step"] == 12
