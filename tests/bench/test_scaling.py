"""The benchmark of several processes: what it starts, counts and prints; a failure is a row."""

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from launching import launch

from hybridlm.bench import scaling, scaling_rank
from hybridlm.bench.cells import Problem
from hybridlm.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scaling.py"


@pytest.fixture
def forked(monkeypatch):
    """Runs are forked from a process that has imported everything, instead of started."""

    def run(words, count, limit):
        done = launch(list(words), ranks=count if count > 1 else None, timeout=limit)
        if done.returncode:
            raise Problem(done.stderr.strip().splitlines()[-1])

    monkeypatch.setattr(scaling, "run_ranks", run)


def test_the_script_measures_prints_and_writes(forked, tmp_path, monkeypatch, capsys):
    """What goes over the loopback interface is at least what the formula says; other programs may add to it."""
    words = ["--quick", "--kinds", "ddp", "fsdp", "sequence", "--processes", "1", "2", "--steps", "3", "--limit", "60"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--out", str(tmp_path / "a.json")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"Results: {tmp_path / 'a.json'}" in said
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["settings"]["command"] == f"python scripts/bench_scaling.py {' '.join(words)}"
    rows = {(row["what"], row["kind"], row["processes"]): row for row in record["rows"]}
    assert list(rows) == [
        ("speed", "alone", 1), ("speed", "ddp", 2), ("speed", "fsdp", 2), ("speed", "sequence", 2),
        ("memory", "alone", 1), ("memory", "sequence", 2),
    ]  # fmt: skip
    alone = rows["speed", "alone", 1]
    assert alone["expected_bytes"] == 0
    for kind, least in (("ddp", 50_000), ("fsdp", 50_000), ("sequence", 50_000)):
        two = rows["speed", kind, 2]
        assert two["tokens_per_second"] > 0
        if "sent_bytes" in two:
            assert two["sent_bytes"] > two["expected_bytes"] > least, kind
    assert len(rows["memory", "alone", 1]["peak_bytes"]) == 1


def test_a_run_that_fails_is_a_row_with_its_problem(monkeypatch):
    lines: list[str] = []

    def fail(*_):
        raise Problem("RuntimeError: out of memory")

    monkeypatch.setattr(scaling, "run_ranks", fail)
    result = scaling.measure(kinds=["fsdp"], processes=[2], steps=1, quick=True, progress=lines.append)
    assert [row["problem"] for row in result["rows"]] == ["RuntimeError: out of memory"]
    assert "out of memory" in lines[0]
    json.dumps(result)


def test_processes_are_started_as_torchrun_does():
    """And those that are left are ended once one failed or the time is over."""
    code = "import os, sys; sys.exit(os.environ['WORLD_SIZE'] != '2' or os.environ['RANK'] not in '01')"
    scaling.run_ranks(["-c", code], 2, 30)
    scaling.run_ranks(["-c", "import os, sys; sys.exit('WORLD_SIZE' in os.environ)"], 1, 30)
    code = "import os, sys, time; sys.exit('no room') if os.environ['RANK'] == '1' else time.sleep(60)"
    with pytest.raises(Problem, match="no room"):
        scaling.run_ranks(["-c", code], 2, 30)
    with pytest.raises(Problem, match="took longer than 1 s"):
        scaling.run_ranks(["-c", "import time; time.sleep(60)"], 1, 1)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="there is no 'zero'"):
        scaling.measure(kinds=["zero"], quick=True)
    with pytest.raises(UserError, match="steps=0"):
        scaling.measure(steps=0)


def test_the_loopback_interface_counts():
    counted = [scaling_rank.loopback_bytes() for _ in range(2)]
    if None not in counted:
        assert all(after >= before >= 0 for before, after in pairwise(counted))
        assert launch(["-c", SENDS]).stdout.strip() == "True"


SENDS = """
import socket
from hybridlm.bench.scaling_rank import loopback_bytes
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
other, _ = server.accept()
before = loopback_bytes()
client.sendall(b"x" * 50_000)
read = 0
while read < 50_000:
    read += len(other.recv(50_000))
print(loopback_bytes() - before >= 50_000)
"""


def test_the_table():
    rows = [
        {"what": "speed", "kind": "ddp", "processes": 2, "length": 1024, "tokens_per_second": 2000.4}
        | {"sent_bytes": 3 * 2**20, "expected_bytes": 2 * 2**20},
        {"what": "speed", "kind": "alone", "processes": 1, "length": 8, "tokens_per_second": 1.0, "expected_bytes": 0},
        {"what": "memory", "kind": "sequence", "processes": 2, "length": 2048, "peak_bytes": [2**20, 5 * 2**20]},
    ]
    lines = [line.split() for line in scaling.table({"rows": rows}).splitlines()[1:]]
    assert lines == [
        ["speed", "ddp", "2", "1,024", "2,000", "3.00", "MiB", "2.00", "MiB", "1.50"],
        ["speed", "alone", "1", "8", "1", "unknown", "0.00", "MiB"],
        ["memory", "sequence", "2", "2,048", "5", "MiB"],
    ]
