"""The tensor that a stopped run names: planted in a weight, in what a cell gives, and in a backward alone."""

import json

import pytest
import torch
from accelerate import Accelerator
from failing import InfiniteGradient

from hybridlm.data.loader import batches
from hybridlm.errors import UserError
from hybridlm.training import diagnosis, loop, setup
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.diagnosis import FailedStep, find_cause
from hybridlm.training.guard import DivergedError
from hybridlm.training.lock import LOCK
from hybridlm.training.loop import pretrain
from hybridlm.training.random_state import RandomState
from hybridlm.training.step import Terms, backward, valid_targets

LAYERS = (
    "model={pattern: rglru bmru+cmru attention acmru, hidden_size: 16, num_attention_heads: 2, attention_dropout: 0.2}"
)
BAD_STEP = 3
FLAVOURS = pytest.mark.parametrize(
    "flavour",
    [
        (),
        ("training.mixed_precision=bf16",),
        ("training.gradient_checkpointing=true", "training.micro_batch_size=2"),
    ],
    ids=["fp32", "bf16", "checkpointing"],
)


def spoiled(output, how):
    if not isinstance(output, tuple):
        return how(output)
    return (how(output[0]), *output[1:])


def plant(monkeypatch, name: str, how) -> None:
    """From the step BAD_STEP on, the module computes `how` of what it gave: as if its own code did, with no hook."""
    made = loop.build_model
    steps = []

    def build(*args):
        model = made(*args)
        module = model.get_submodule(name)
        forward = module.forward

        def bad(*inputs, **keywords):
            output = forward(*inputs, **keywords)
            return spoiled(output, how) if len(steps) >= BAD_STEP else output

        module.forward = bad
        return model

    compute = loop.backward

    def count(*args, **keywords):
        steps.append(1)
        return compute(*args, **keywords)

    monkeypatch.setattr(loop, "build_model", build)
    monkeypatch.setattr(loop, "backward", count)


def nan_at(x: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(x.shape[-1]) == 3, float("nan"), x)


def stopped(config) -> tuple[str, dict]:
    with pytest.raises(DivergedError) as caught:
        pretrain(config)
    return str(caught.value), json.loads((config.run.path / "diverged.json").read_text(encoding="utf-8"))


@FLAVOURS
@pytest.mark.parametrize(
    "name", ["model.layers.1.mixer.cells.1", "model.layers.0.mixer.gate_proj", "model.layers.2.mixer", "model.norm"]
)
def test_what_a_module_gives(recipe, monkeypatch, flavour, name):
    plant(monkeypatch, name, nan_at)
    config = recipe(LAYERS, "training.steps=6", "checkpoint.every=2", *flavour)
    message, report = stopped(config)
    assert f"Stopped at step {BAD_STEP} of 6, before the weights were changed." in message
    assert f"the output of {name} (" in message
    assert "whose inputs are finite, from -" in message
    newest = checkpoints(config.run.path)[-1]
    assert newest.name == "step-00000002"
    assert message.endswith(f"untouched: {newest}")
    assert (report["kind"], report["tensor"], report["step"], report["process"]) == ("forward", name, BAD_STEP, 0)
    bad, given = report["seen"]["bad"], report["seen"]["given"]
    assert bad["nan"] > 0 == bad["infinite"]
    assert bad["nan"] / bad["values"] < 0.1
    assert given["low"] < 0 < given["high"]
    assert given["nan"] == given["infinite"] == 0
    assert bad["dtype"] == ("bfloat16" if "bf16" in str(flavour) and name.endswith("gate_proj") else bad["dtype"])
    assert report["message"] == message
    assert report["checkpoint"] == str(newest)


@FLAVOURS
@pytest.mark.parametrize(
    "name", ["model.layers.1.mixer.cells.0", "model.layers.0.mixer.gate_proj", "model.layers.3", "model.embed_tokens"]
)
def test_a_backward_alone(recipe, monkeypatch, flavour, name):
    """The hook of its output sees a good gradient; its own code makes it a bad one."""
    plant(monkeypatch, name, InfiniteGradient.apply)
    message, report = stopped(recipe(LAYERS, *flavour))
    assert (report["kind"], report["tensor"]) == (
        "backward",
        "model.embed_tokens.weight" if name == "model.embed_tokens" else name,
    )
    assert name in message
    assert "the gradient that reaches it is finite, from -" in message
    assert report["seen"]["bad"]["infinite"] + report["seen"]["bad"]["nan"] > 0
    assert report["seen"]["given"]["infinite"] == report["seen"]["given"]["nan"] == 0


@FLAVOURS
def test_a_weight(recipe, monkeypatch, flavour):
    """A bad weight was in a checkpoint already: the last good one is named."""
    name = "model.layers.1.mixer.cells.0.threshold.bias"
    step = loop.optimizer_step

    def spoil(accelerator, model, *args):
        result = step(accelerator, model, *args)
        spoil.steps += 1
        if spoil.steps == 4:
            with torch.no_grad():
                model.get_parameter(name)[2] = float("nan")
        return result

    spoil.steps = 0
    monkeypatch.setattr(loop, "optimizer_step", spoil)
    config = recipe(LAYERS, "training.steps=6", "checkpoint.every=2", *flavour)
    message, report = stopped(config)
    assert [path.name for path in checkpoints(config.run.path)] == ["step-00000002", "step-00000004"]
    assert f"the weight {name} itself (float32, 1 nan of 16 values)." in message
    assert message.endswith(f"(remove those behind it): {checkpoints(config.run.path)[0]}")
    assert (report["kind"], report["tensor"], report["step"]) == ("parameter", name, 5)
    with pytest.raises(UserError, match="the weight"):  # the newest checkpoint holds it: the advice is needed
        pretrain(config)


def test_the_loss_itself(recipe, monkeypatch):
    """Hidden states so large that the logits are infinite."""
    plant(monkeypatch, "model.norm", lambda x: x * 2e37)
    message, report = stopped(recipe(LAYERS, "model.initializer_range=5.0"))
    assert (report["kind"], report["tensor"]) == ("loss", "loss")
    assert "the loss, computed by the head lm_head from hidden states that are finite, from -" in message


def test_a_term_of_the_loss(recipe, monkeypatch):
    """Logits whose squares are infinite: the logged loss is finite, the gradient is not."""
    plant(monkeypatch, "model.norm", lambda x: x * 1e25)
    message, report = stopped(recipe(LAYERS, "training.z_loss=1e-4"))
    assert (report["kind"], report["tensor"]) == ("loss", "z_loss")
    assert "the z-loss, computed from logits of the head lm_head, where the cross-entropy is finite" in message


def test_what_cannot_be_found_again_is_told_as_such(recipe, monkeypatch):
    compute = loop.backward
    monkeypatch.setattr(
        loop,
        "backward",
        lambda *args, **kw: compute(*args, **kw)._replace(cross_entropy=torch.tensor(float("nan"))),
    )
    message, report = stopped(recipe())
    assert (report["kind"], report["tensor"], report["checkpoint"]) == ("unknown", None, None)
    assert "is the loss (nan). The search did not find" in message
    assert message.endswith("There is no checkpoint yet.")


@pytest.mark.parametrize("together", [False, True])
def test_a_search_that_breaks_off(recipe, monkeypatch, together):
    """Alone the stop is told without a finding; processes that compute together would wait for this one's part."""

    def no_memory(*_):
        raise RuntimeError("no memory for a second pass")

    monkeypatch.setattr(diagnosis, "_forward", no_memory)
    monkeypatch.setattr(diagnosis, "_backward", no_memory)
    monkeypatch.setattr(diagnosis, "is_sharded", lambda _: together)
    with monkeypatch.context() as patch:
        plant(patch, "model.layers.1.mixer.cells.0", nan_at)
        with pytest.raises(DivergedError) as error:
            pretrain(recipe())
    said = (
        "broke off on process 0: no memory for a second pass" if together else "The search did not find where it began"
    )
    assert said in str(error.value)


def test_a_run_that_goes_on_forgets_the_report(recipe, monkeypatch):
    config = recipe("checkpoint.every=2")
    with monkeypatch.context() as patch:
        plant(patch, "model.layers.1.mixer.cells.0", nan_at)
        stopped(config)
    pretrain(config)
    assert not (config.run.path / "diverged.json").exists()
    assert [path.name for path in config.run.path.glob(".*")] == [LOCK]


@pytest.mark.parametrize("how", [nan_at, InfiniteGradient.apply], ids=["forward", "backward"])
def test_the_search_leaves_everything_as_it_was(recipe, monkeypatch, how):
    """Weights, gradients, random states and hooks; and it sees the dropout that the step saw."""
    config = recipe(LAYERS, "training.micro_batch_size=2")
    accelerator = Accelerator(cpu=True)
    data = setup.open_data(config, accelerator)
    model = accelerator.prepare(setup.build_model(config, data, None))
    torch.manual_seed(5)
    step = next(batches(data.windows, start_step=0, batch_size=4, micro_batch_size=2, rank=0, world_size=1))
    valid = valid_targets(accelerator, step)
    failed = FailedStep(step, valid, Terms(), RandomState(accelerator.device))
    cell = model.get_submodule("model.layers.1.mixer.cells.0")
    attention = model.get_submodule("model.layers.2.mixer")
    seen: list[torch.Tensor] = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output[0].detach().clone()))
    backward(accelerator, model, step, valid)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    forward = cell.forward
    cell.forward = lambda *args: spoiled(forward(*args), how)
    finding = find_cause(accelerator, model, failed)
    assert finding is not None
    assert (finding.tensor, finding.micro_batch) == ("model.layers.1.mixer.cells.0", 0)
    cell.forward = forward
    assert find_cause(accelerator, model, failed) is None
    assert len(seen[-4:]) == 4
    for again in (seen[-4:-2], seen[-2:]):  # forward alone, then with its backward
        assert all(torch.equal(one, two) for one, two in zip(again, seen[:2], strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert torch.equal(parameter.grad, gradients[name])
        assert not parameter._backward_hooks
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == 1
