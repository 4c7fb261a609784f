"""A signal ends a validation at its next batch, and the resumed run makes up for it as if nothing had been."""

import json
import os
import signal

import pytest
import torch
from comparing import assert_same
from failing import crash_after

from hybridlm.training import validation
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.loop import _Run, pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.signals import RunInterrupted

SETTINGS = (
    "training.steps=6", "training.ema_decay=0.9", "logging.samples={every: 4, max_new_tokens: 2}",
    "validation={every: 2, at_start: true, max_windows: 9, batch_size: 1, patience: 2, min_improvement: 0.0}",
)  # fmt: skip


@pytest.fixture
def stopped_in(monkeypatch):
    """`stopped_in(config, step, batch)`: trains until a signal comes before that batch of the validations behind `step`
    (those of the weights and their average count on); how many batches were read behind the signal."""

    def run(config, step: int, batch: int) -> int:
        read, validate, batches = [], _Run._validate, validation.validation_batches

        def note(self, *args):
            note.step = self.done
            return validate(self, *args)

        def signalled(*args, **keywords):
            for each in batches(*args, **keywords):
                if note.step == step:
                    read.append(1)
                    if len(read) == batch:
                        os.kill(os.getpid(), signal.SIGTERM)
                yield each

        with monkeypatch.context() as patch:
            patch.setattr(_Run, "_validate", note)
            patch.setattr(validation, "validation_batches", signalled)
            with pytest.raises(RunInterrupted) as caught:
                pretrain(config)
        assert (caught.value.code, caught.value.step) == (143, step)
        torch.manual_seed(99)  # another process would start from other random numbers
        return len(read) - batch

    return run


# In the first validation, in that of the average, in the last one.
@pytest.mark.parametrize(("step", "batch"), [(2, 3), (4, 14), (6, 1)])
def test_a_validation_that_was_given_up_comes_again(recipe, stopped_in, step, batch, monkeypatch, capsys):
    """Twice, where the session that made up for it crashes before its first checkpoint."""
    whole, config = recipe(*SETTINGS, "run.name=whole"), recipe(*SETTINGS, "run.name=parts")
    pretrain(whole)
    assert stopped_in(config, step, batch) == 0
    run = config.run.path
    rows = read_rows(run / "metrics.jsonl")
    assert rows[-1]["step"] == step
    assert "lr" in rows[-1]  # the step's own row, and none of its validation
    state = json.loads((checkpoints(run)[-1] / STATE / "state.json").read_text(encoding="utf-8"))
    assert (state["step"], state["validation_due"]) == (step, True)
    assert not (run / "final").exists()
    if step < 6:
        crash_after(step + 1, config, monkeypatch)
        validated = [row["step"] for row in read_rows(run / "metrics.jsonl") if "bits_per_byte" in row]
        assert validated == list(range(0, step + 1, 2))  # it came, and the checkpoint still says that it is due
        capsys.readouterr()
    pretrain(config)
    assert "which the checkpoint of step" not in capsys.readouterr().out
    assert_same(run, whole.run.path)
    assert read_rows(run / "samples.jsonl") == read_rows(whole.run.path / "samples.jsonl")
    finals = [json.loads((folder / "final" / STATE / "state.json").read_text()) for folder in (run, whole.run.path)]
    assert finals[0] | {"seconds": 0} == finals[1] | {"seconds": 0}
    assert finals[0]["validation_due"] is False
    assert json.loads((run / "best" / STATE / "state.json").read_text())["validation_due"] is False


def test_a_run_whose_patience_ends_in_a_validation_that_came_again(recipe, stopped_in):
    settings = (*SETTINGS, "validation.min_improvement=9.0", "training.steps=9")
    whole, config = recipe(*settings, "run.name=whole"), recipe(*settings, "run.name=parts")
    pretrain(whole)
    stopped_in(config, 4, 2)
    pretrain(config)
    assert_same(config.run.path, whole.run.path)
    assert json.loads((config.run.path / "final" / STATE / "state.json").read_text())["step"] == 4
    assert read_rows(config.run.path / "samples.jsonl") == read_rows(whole.run.path / "samples.jsonl")
