"""fp16 with its loss scaler, as far as a CPU can show it: overflows, and a scale that goes on from a checkpoint.

torch scales and autocasts on CPUs too; Accelerate and the session alone ask for a GPU.
"""

import json
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState
from failing import InfiniteGradient

from hybridlm.training import loop, session
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.guard import DivergedError
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

RUN = ("training.steps=6", "checkpoint={every: 1, keep: 9}", "training.ema_decay=0.5", "training.mixed_precision=no")


@pytest.fixture
def scaled(monkeypatch):
    """Runs in fp16 on the CPU, with a scale that grows after three good steps; gradients overflow in step 2 and 3."""
    make, compute, steps = session._accelerator, loop.backward, loop._Run._step

    def with_scaler(config):
        accelerator = make(config)
        AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
        return accelerator

    def note(self, micro_batches):
        note.step = self.done + 1
        return steps(self, micro_batches)

    def overflow(accelerator, model, *args):
        loss = compute(accelerator, model, *args)
        if note.step in (2, 3):
            accelerator.unwrap_model(model).model.embed_tokens.weight.grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(session, "_accelerator", with_scaler)
    monkeypatch.setattr(loop, "backward", overflow)
    monkeypatch.setattr(loop._Run, "_step", note)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_overflow_leaves_everything_as_it_was_and_halves_the_scale(recipe, scaled, same_weights, kind):
    result = pretrain(recipe(*RUN, f"optimizer.kind={kind}"))
    rows = [row for row in read_rows(result.metrics) if "bits_per_byte" not in row]
    assert [row["grad_norm"] is None for row in rows] == [False, True, True, False, False, False]
    folders = checkpoints(result.run_folder)
    assert [same_weights(one, two) for one, two in pairwise(folders)] == [
        True, True, False, False, False,
    ]  # fmt: skip
    saved = [torch.load(folder / STATE / "optimizer.pt", weights_only=True) for folder in folders]
    assert [state["scaler"]["scale"] for state in saved] == [2.0**n for n in (14, 13, 12, 12, 12, 13)]
    averages = [torch.load(folder / STATE / "ema.pt", weights_only=True) for folder in folders]
    assert [int(state["n_averaged"]) for state in averages] == [1, 1, 1, 2, 3, 4]
    one, two = ([*state["optimizer"]["state"].values()] for state in (saved[0], saved[2]))
    assert all(torch.equal(left[key], right[key]) for left, right in zip(one, two, strict=True) for key in left)


@pytest.mark.parametrize(("kind", "at"), [("adamw", 2), ("muon", 5)])
def test_the_scale_goes_on(recipe, scaled, interrupted, same_run, kind, at):
    whole = pretrain(recipe(*RUN, f"optimizer.kind={kind}", "run.name=whole"))
    config = recipe(*RUN, f"optimizer.kind={kind}", "run.name=halves")
    interrupted(config, at)
    halves = pretrain(config)
    assert same_run(whole, halves, "final-ema")
    states = [
        torch.load(checkpoints(run.run_folder)[-1] / STATE / "optimizer.pt", weights_only=True)
        for run in (whole, halves)
    ]
    assert states[0]["scaler"] == states[1]["scaler"]


def test_overflows_without_end_name_the_tensor_where_they_begin(recipe, scaled, monkeypatch):
    """As any other stop by itself does, on the screen and in diverged.json."""
    build, name = loop.build_model, "model.layers.1.mixer.cells.0"

    def planted(*args):
        model = build(*args)
        cell = model.get_submodule(name)
        forward = cell.forward

        def overflowing(*inputs, **keywords):
            outputs = forward(*inputs, **keywords)
            return (InfiniteGradient.apply(outputs[0]), *outputs[1:]) if loop._Run._step.step >= 5 else outputs

        cell.forward = overflowing
        return model

    monkeypatch.setattr(loop, "build_model", planted)
    monkeypatch.setattr(loop, "MAX_OVERFLOWS", 3)
    config = recipe(*RUN, "training.steps=9")
    with pytest.raises(DivergedError) as caught:
        pretrain(config)
    message = str(caught.value)
    assert message.startswith("Stopped at step 7 of 9, before the weights were changed. The gradient overflowed")
    assert (
        " fp16 in 3 steps in a row, so nothing was learned in them. The first tensor that is not finite is" in message
    )
    assert f" a gradient that {name} (BmruCell) hands back" in message
    report = json.loads((config.run.path / "diverged.json").read_text(encoding="utf-8"))
    assert (report["kind"], report["step"], report["tensor"], report["message"]) == ("backward", 7, name, message)
    assert report["checkpoint"] == str(checkpoints(config.run.path)[-1])
    assert checkpoints(config.run.path)[-1].name == "step-00000006"
