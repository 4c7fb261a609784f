"""A run does not go on with another mixture of the same sources."""

import pytest

from hybridlm.errors import UserError
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain


def recipe(folder, weights, steps):
    sources = ", ".join(
        f"{{path: {folder}/{name}.txt, documents: line, weight: {weight}}}"
        for name, weight in zip("ab", weights, strict=True)
    )
    prepare = f"{{sources: [{sources}], output: {folder}/data, vocab_size: 280, validation: {{share: 0}}}}"
    overrides = [
        f"data={{prepare: {prepare}, sequence_length: 16}}",
        f"training={{steps: {steps}, batch_size: 2}}",
        "model={pattern: rglru, hidden_size: 16, num_attention_heads: 2}",
        "schedule.warmup_steps=0",
        "checkpoint.every=1",
        f"run={{name: test, folder: {folder}/runs}}",
    ]
    return load_config(None, overrides)


def test_a_run_does_not_go_on_with_other_weights(tmp_path):
    for name in "ab":
        lines = [f"{name} {i}: the sea was calm" for i in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    pretrain(recipe(tmp_path, [1, 2], 2))
    for weights in ([1, 1], [1, 0.5]):
        with pytest.raises(UserError, match="the data: its fingerprint was"):
            pretrain(recipe(tmp_path, weights, 2))
    pretrain(recipe(tmp_path, [1, 2], 2))
