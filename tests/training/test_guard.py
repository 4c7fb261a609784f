"""Loss spikes: when the guard speaks, when it keeps silent, and that a stop does not change what it knows."""

import json

import pytest
import torch

from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.guard import SpikeError, SpikeGuard
from hybridlm.training.loop import pretrain
from hybridlm.training.sections import GuardConfig


def guard_after(losses, spike=10.0, window=20) -> SpikeGuard:
    guard = SpikeGuard(GuardConfig(spike=spike, window=window))
    for loss in losses:
        guard.check(loss)
        guard.note(loss)
    return guard


def noisy(count: int, level: float = 3.0, noise: float = 0.05) -> list[float]:
    return (level + noise * torch.randn(count, generator=torch.Generator().manual_seed(0))).tolist()


def test_the_limit_is_median_and_deviation():
    guard = guard_after([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], window=8, spike=3.0)
    assert guard.limit() == pytest.approx(4.5 + 3 * 1.4826 * 2.0)
    guard.check(4.5 + 3 * 1.4826 * 2.0 - 1e-6)
    with pytest.raises(SpikeError, match=r"jumped to 13\.4.*8 steps is 4\.5000, and guard\.spike=3 lets .* 13\.3956"):
        guard.check(13.4)


def test_no_false_alarm():
    guard_after(noisy(2000))
    guard_after([3.0, *[2.0] * 100, 2.09, *[2.0] * 50])  # losses that hardly differ: noise within 0.1 nats
    guard_after([11.0 * 0.97**step + 2 for step in range(200)])  # early in a run
    guard_after([2 + 0.02 * step for step in range(100)])  # epsilon falls and the loss rises, without a jump
    guard_after([9.0, 3.0, 30.0])  # nothing to compare with yet


@pytest.mark.parametrize("before", [noisy(50), [2.0] * 50])
def test_a_jump_is_a_spike_and_odd_losses_before_do_not_hide_it(before):
    guard = guard_after(before)
    with pytest.raises(SpikeError):
        guard.check(before[-1] + 1.0)
    guard = guard_after(before)
    for odd in (50.0, 60.0, 70.0):  # let through
        guard.note(odd)
    with pytest.raises(SpikeError):
        guard.check(before[-1] + 1.5)


def test_off_it_remembers_nothing():
    guard = guard_after([3.0, 900.0] * 50, spike=None)
    assert guard.losses == []
    assert guard.limit() is None


def jump_at(monkeypatch, steps: set[int], by: float = 5.0) -> None:
    step = loop._Run._step
    backward = loop.backward

    def higher(self, batches):
        def spiked(*args):
            loss = backward(*args)
            return loss._replace(cross_entropy=loss.cross_entropy + by) if self.done + 1 in steps else loss

        monkeypatch.setattr(loop, "backward", spiked)
        return step(self, batches)

    monkeypatch.setattr(loop._Run, "_step", higher)


GUARDED = ("training.steps=20", "guard={spike: 10, window: 8}")


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_run_stops_before_the_update_and_goes_on_over_it(recipe, interrupted, monkeypatch, stopped_before):
    """The same with a stop and a resume in between, behind which less than a window of steps was seen."""
    plain = pretrain(recipe("training.steps=20", "run.name=plain"))
    config = recipe(*GUARDED, "checkpoint.every=5", "run.name=guarded")
    jump_at(monkeypatch, {14})
    if stopped_before:
        interrupted(config, 11)
        saved = json.loads((checkpoints(config.run.path)[-1] / STATE / "state.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (plain.metrics).read_text(encoding="utf-8").splitlines()]
        assert saved["losses"] == [row["loss"] for row in rows if "lr" in row][3:11]
    with pytest.raises(SpikeError) as caught:
        pretrain(config)
    newest = checkpoints(config.run.path)[-1]
    message = str(caught.value)
    assert newest.name == f"step-000000{11 if stopped_before else 10}"
    assert "Stopped at step 14 of 20, before the weights were changed. The loss jumped to" in message
    assert "Start the same command with guard.spike=null, or a higher one, to go on" in message
    assert message.endswith(f"untouched: {newest}")
    report = json.loads((config.run.path / "diverged.json").read_text(encoding="utf-8"))
    assert (report["kind"], report["step"], report["tensor"], report["message"]) == ("spike", 14, "loss", message)
    with pytest.raises(SpikeError) as again:  # the memory of the losses came back: the same step, the same words
        pretrain(config)
    assert str(again.value) == message
    over = pretrain(recipe("training.steps=20", "guard.spike=null", "checkpoint.every=5", "run.name=guarded"))
    same = [(result.checkpoint / "model.safetensors").read_bytes() for result in (plain, over)]
    assert same[0] == same[1]
    assert not (config.run.path / "diverged.json").exists()


def test_settings():
    with pytest.raises(ValueError, match="greater than 0"):
        GuardConfig(spike=0.0)
    with pytest.raises(ValueError, match="greater than or equal to 8"):
        GuardConfig(window=7)
    assert issubclass(SpikeError, UserError)
