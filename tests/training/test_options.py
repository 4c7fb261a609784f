"""Muon, the linear schedule and the moving average in whole runs: resumed, they give the uninterrupted run's bits."""

import json
import re

import pytest
import torch
from comparing import seal
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.journal import Journal
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

RUN = ("training.steps=8", "validation.every=3", "optimizer.lr=5e-3")


@pytest.mark.parametrize(
    ("options", "folders"),
    [
        (("optimizer.kind=muon", "optimizer.muon.momentum=0.9", "schedule.kind=linear"), ()),
        (("training.ema_decay=0.7",), ("final-ema",)),
        (("optimizer.kind=muon", "training.ema_decay=0.9", "training.mixed_precision=bf16"), ("final-ema",)),
    ],
)
def test_resumed_is_uninterrupted(recipe, interrupted, same_run, options, folders):
    plain = pretrain(recipe(*RUN, "run.name=plain"))
    whole = pretrain(recipe(*RUN, *options, "run.name=whole"))
    config = recipe(*RUN, *options, "run.name=halves")
    interrupted(config, 4)
    halves = pretrain(config)
    assert same_run(whole, halves, "best", *folders)
    assert not same_run(plain, whole)


def test_the_average_is_that_of_the_weights_after_each_step(recipe, monkeypatch):
    """Recomputed from the checkpoints of all steps; it starts at the weights after the first one."""
    config = recipe(
        "training.ema_decay=0.6", "checkpoint={every: 1, keep: 9}", "validation.every=2", "validation.at_start=true"
    )
    result = pretrain(config)
    average = None
    for folder in checkpoints(config.run.path):
        weights = load_file(folder / "model.safetensors")
        average = (
            weights
            if average is None
            else {name: 0.6 * tensor + 0.4 * weights[name] for name, tensor in average.items()}
        )
    assert average is not None
    saved = load_file(result.run_folder / "final-ema" / "model.safetensors")
    assert saved.keys() == average.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-6)
    final = load_file(result.checkpoint / "model.safetensors")
    assert not torch.equal(saved["model.embed_tokens.weight"], final["model.embed_tokens.weight"])

    rows = [row for row in read_rows(result.metrics) if "bits_per_byte" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["bits_per_byte_ema"] == rows[0]["bits_per_byte"]
    assert all(row["bits_per_byte_ema"] != row["bits_per_byte"] for row in rows[1:])
    assert result.validation["bits_per_byte_ema"] == rows[-1]["bits_per_byte_ema"]

    # The model in `final-ema`, measured as the final one of a run, has the number of the last row.
    model = AutoModelForCausalLM.from_pretrained(result.run_folder / "final-ema")
    assert model.epsilon == 0.0
    other = pretrain(recipe("run.name=other", f"training.init_from={result.run_folder / 'final-ema'}",
                            "validation.at_start=true", "training.steps=1"))  # fmt: skip
    measured = next(row for row in read_rows(other.metrics) if "bits_per_byte" in row)
    assert measured["bits_per_byte"] == pytest.approx(rows[-1]["bits_per_byte_ema"], rel=1e-9)


def test_the_average_is_printed_and_only_made_where_asked_for(recipe, capsys):
    with_average = pretrain(recipe("training.ema_decay=0.5"))
    value = with_average.validation["bits_per_byte_ema"]
    text = capsys.readouterr().out
    assert f"bits per byte, averaged weights {value:.4f}, " in text
    assert "moving average of the weights, decay 0.5" in text
    without = pretrain(recipe("run.name=without"))
    assert "bits_per_byte_ema" not in without.validation
    assert not (without.run_folder / "final-ema").exists()
    assert without.validation["bits_per_byte"] == with_average.validation["bits_per_byte"]


def test_a_damaged_average_is_one_clear_error(recipe, interrupted):
    config = recipe("training.ema_decay=0.5")
    interrupted(config, 2)
    path = checkpoints(config.run.path)[-1] / STATE / "ema.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"ema\.pt does not fit its checksum"):
        pretrain(config)
    seal(path.parents[1])
    with pytest.raises(UserError, match=r"ema\.pt is damaged"):
        pretrain(config)


def test_the_report_names_the_optimizer(recipe, capsys):
    pretrain(recipe("optimizer.kind=muon", "training.steps=1"))
    text = capsys.readouterr().out
    assert "Muon for the hidden matrices, AdamW for the rest, cosine schedule" in text
    found = re.search(r"parameters: *([\d,]+) \(.*; muon ([\d,]+), decay ([\d,]+), no_decay ([\d,]+)\)", text)
    assert found is not None
    total, *parts = (int(number.replace(",", "")) for number in found.groups())
    assert sum(parts) == total


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optimizer.kind=muon", "optimizer.kind: was adamw, is now muon"),
        ("training.ema_decay=0.9", "training.ema_decay: was None, is now 0.9"),
        ("schedule.kind=linear", "schedule.kind: was cosine, is now linear"),
        ("training.init_from=some/model", "training.init_from: was None, is now some/model"),
    ],
)
def test_what_decides_the_numbers_must_not_change(recipe, interrupted, change, named):
    interrupted(recipe(), 2)
    with pytest.raises(UserError, match=named):
        pretrain(recipe(change))


def test_a_checkpoint_that_knows_fewer_settings_goes_on(recipe, interrupted):
    """Settings that it lacks have the values that there was no choice about."""
    config = recipe()
    interrupted(config, 2)
    path = checkpoints(config.run.path)[-1] / STATE / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    for name in ("optimizer.kind", "optimizer.muon", "training.ema_decay", "training.init_from", "training.z_loss"):
        del state["settings"][name]
    for name in ("early_stopping", "stopped_early", "losses", "overflows"):
        del state[name]
    path.write_text(json.dumps(state), encoding="utf-8")
    seal(path.parents[1])
    with pytest.raises(UserError, match=r"optimizer\.kind: was adamw, is now muon"):
        pretrain(recipe("optimizer.kind=muon"))
    with pytest.raises(UserError, match=r"training\.z_loss: was 0\.0, is now 0\.1"):
        pretrain(recipe("training.z_loss=0.1"))
    assert read_rows(pretrain(config).metrics)[-1]["step"] == 4


def test_skipped_steps_are_not_averaged(recipe, monkeypatch):
    """fp16 leaves steps out: the average does not take the same weights in twice."""
    from hybridlm.training import loop
    from hybridlm.training.step import StepResult

    step, taken = loop.optimizer_step, []

    def skip_the_second(accelerator, model, optimizer, loss, clip_norm):
        taken.append(loss)
        if len(taken) == 2:
            optimizer.zero_grad()
            return StepResult(loss.item(), float("inf"), skipped=True)
        return step(accelerator, model, optimizer, loss, clip_norm)

    counts = []
    validate = Journal.validation
    monkeypatch.setattr(loop, "optimizer_step", skip_the_second)
    monkeypatch.setattr(
        Journal, "validation", lambda self, row, windows: (counts.append(row), validate(self, row, windows))
    )
    config = recipe("training.ema_decay=0.6", "training.steps=2", "checkpoint.every=1")
    result = pretrain(config)
    assert len(taken) == 2
    saved = [load_file(result.run_folder / name / "model.safetensors") for name in ("final-ema", "final")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
