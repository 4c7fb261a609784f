"""The line that a process was started with."""

import pytest

from hybridlm.machine import started_with


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["python"], None),
        (["python", "-c", "import hybridlm"], None),
        (["/env/bin/python", "/env/bin/hybridlm", "pretrain", "run.name=a b"], "hybridlm pretrain 'run.name=a b'"),
        (["python", "-m", "hybridlm_command", "demo"], "hybridlm demo"),
        (["python", "-m", "hybridlm.cli", "demo"], "hybridlm demo"),
        (["python", "-u", "scripts/pretrain.py", "--config", "a.yaml"], "python scripts/pretrain.py --config a.yaml"),
        (["python", "/home/someone/train.py", "x"], "python train.py x"),
        (["python", "-m", "mine.train"], "python -m mine.train"),
    ],
)
def test_the_line(words, line):
    assert started_with(words) == line
