"""The benchmark of one long sequence: processes that share it agree with one that has it alone."""

import json
from pathlib import Path

import pytest
import torch
from launching import launch

from hybridlm.bench import sequence
from hybridlm.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_million.py"
SMALL = ["--length", "256", "--pattern", "rglru bmru", "--width", "32", "--checkpointing", "both"]


def test_two_processes_beside_one(tmp_path):
    out = tmp_path / "sequence.json"
    done = launch([SCRIPT, *SMALL, "--compare", "128", "--json", out], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["settings"]["command"].startswith("torchrun --nproc_per_node 2 scripts/train_million.py --length 256")
    assert "json" not in record["settings"]["command"]
    rows = record["rows"]
    assert [(row["length"], row["processes"], row["checkpointing"]) for row in rows] == [
        (128, 1, False), (128, 2, False), (256, 2, False), (256, 2, True),
    ]  # fmt: skip
    for name in ("losses", "gradient_norms"):
        for one, other in ((rows[0], rows[1]), (rows[2], rows[3])):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
            assert one[name][0] != pytest.approx(one[name][1], rel=1e-4)
    assert [each["tokens"] for each in rows[3]["ranks"]] == [128, 128]
    assert all(each["peak_rss_bytes"] > each["in_use_bytes"] >= 0 for row in rows for each in row["ranks"])
    assert "2 processes beside one, T = 128:\n  loss           differs by " in done.stdout


def test_one_process_alone():
    result = sequence.measure(64, None, pattern="lru", width=32, steps=1)
    assert [row["processes"] for row in result["rows"]] == [1]
    assert "T = 64, 1 process(es): lru, width 32" in sequence.table(result)


def test_the_text_goes_on_from_its_start():
    ids = sequence.text(2**20)
    assert ids.shape == (1, 2**20 + 1)
    assert torch.equal(ids[0, :1000], ids[0, 900_265:901_265])


def test_lengths_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="length=1: must be a multiple"):
        sequence.measure(1, None)
    with pytest.raises(UserError, match="steps=0"):
        sequence.measure(64, None, steps=0)
