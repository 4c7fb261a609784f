"""The mixture of sources belongs to the run: it does not go on with another one, and others may have theirs."""

import json

import pytest

from hybridlm.data.prepare import prepare
from hybridlm.errors import UserError
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain


def recipe(folder, weights, steps, name="test"):
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
        f"run={{name: {name}, folder: {folder}/runs}}",
    ]
    return load_config(None, overrides)


def texts(folder):
    for name in "ab":
        lines = [f"{name} {i}: the sea was calm" for i in range(60)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def test_a_run_does_not_go_on_with_other_weights(tmp_path):
    texts(tmp_path)
    pretrain(recipe(tmp_path, [1, 2], 2))
    for weights in ([1, 1], [1, 0.5]):
        with pytest.raises(UserError, match="the data: its fingerprint was"):
            pretrain(recipe(tmp_path, weights, 2))
    pretrain(recipe(tmp_path, [1, 2], 2))


def test_runs_with_weights_of_their_own_share_a_data_folder(tmp_path, interrupted, same_run):
    texts(tmp_path)
    whole = pretrain(recipe(tmp_path, [1, 2], 6, "whole"))
    interrupted(recipe(tmp_path, [1, 2], 6, "halves"), 3)
    manifest = (tmp_path / "data" / "manifest.json").read_bytes()
    other = pretrain(recipe(tmp_path, [1, 0.5], 6, "other"))
    assert (tmp_path / "data" / "manifest.json").read_bytes() == manifest
    # Nor does a run notice that the folder itself was given other weights.
    prepare(recipe(tmp_path, [3, 1], 6).data.prepare, log=lambda _: None)
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["weights"] == [3, 1]
    halves = pretrain(recipe(tmp_path, [1, 2], 6, "halves"))
    assert same_run(whole, halves)
    assert not same_run(whole, other)


def test_a_run_that_names_the_folder_alone_has_the_weights_of_the_folder(tmp_path, interrupted):
    texts(tmp_path)
    section = recipe(tmp_path, [1, 2], 6).data.prepare
    prepare(section, log=lambda _: None)
    config = recipe(tmp_path, [1, 2], 4)
    config.data.prepare, config.data.folder = None, str(tmp_path / "data")
    interrupted(config, 2)
    prepare(recipe(tmp_path, [1, 1], 6).data.prepare, log=lambda _: None)
    with pytest.raises(
        UserError, match=r"the data: its fingerprint was .* \(the weights of its sources are part of it\)"
    ):
        pretrain(config)
    prepare(section, log=lambda _: None)
    assert pretrain(config).checkpoint.is_dir()
