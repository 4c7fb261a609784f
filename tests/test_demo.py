"""The demo, shortened: every part of it happens, and a second call trains nothing."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridlm.demo import PROMPT, demo
from hybridlm.errors import UserError

SHORT = (
    "data.prepare.vocab_size=300",
    "model.pattern=rglru bmru",
    "model.hidden_size=32",
    "data.sequence_length=64",
    "training.steps=3",
    "training.batch_size=2",
    "validation.max_windows=4",
    "logging.samples.every=0",
)


def test_demo(tmp_path, capsys):
    folder = tmp_path / "demo"
    first = demo(folder, overrides=SHORT)
    out = capsys.readouterr().out
    assert first.checkpoint == folder / "run" / "final"
    assert first.picture == folder / "loss.png"
    assert first.picture.read_bytes().startswith(b"\x89PNG")
    assert first.sample.startswith(PROMPT)
    assert first.sample in out
    for bits in (first.bits_per_byte_untrained, first.bits_per_byte_bigram, first.bits_per_byte):
        assert 1 < bits < 10
        assert f"{bits:.3f} bits per byte" in out
    assert first.bits_per_byte < first.bits_per_byte_untrained
    assert str(first.checkpoint) in out

    metrics = (folder / "run" / "metrics.jsonl").read_text()
    weights = AutoModelForCausalLM.from_pretrained(first.checkpoint).state_dict()
    second = demo(folder, overrides=SHORT)
    assert second == first
    assert (folder / "run" / "metrics.jsonl").read_text() == metrics
    again = AutoModelForCausalLM.from_pretrained(first.checkpoint).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.items())

    for changed, found in (
        ("optimizer.lr=1", r"optimizer\.lr: was"),
        ("data.prepare.vocab_size=310", "tokenizer differ"),
    ):
        with pytest.raises(UserError, match=found) as refused:
            demo(folder, overrides=[*SHORT, changed])
        assert str(refused.value).endswith("Give the old settings back, or another --folder.")
        assert "run.name" not in str(refused.value)


def test_the_demo_is_worth_having_without_its_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = demo(tmp_path, overrides=SHORT)
    assert result.picture is None
    assert "'.[plot]'" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("grad_norm" in row for row in rows) == 3
