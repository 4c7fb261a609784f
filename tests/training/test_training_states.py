"""epsilon and exploration through a run: set by the schedule, 0 where the model is used, the same after a resume."""

import json

import pytest
import torch
from comparing import rows_without_times
from torch import nn
from transformers import TrainerControl, TrainerState

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.training import ExplorationCallback
from hybridlm.training.annealing import ExplorationConfig
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.schedules import annealed
from hybridlm.training.training_states import changing, put, scheduled, switched_off, training_states
from hybridlm.training.validation import evaluating

BOTH = ("model={pattern: nfsm bmru, hidden_size: 16}", "training.steps=8", "exploration={hold: 0.25, zero: 0.75}")
NOISE = [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def small(pattern):
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, vocab_size=10, hidden_size=16, num_attention_heads=2))


def test_a_run_follows_the_schedules_and_goes_on_as_if_never_stopped(recipe, interrupted, same_weights):
    whole = pretrain(recipe(*BOTH, "run.name=whole", "validation.every=4"))
    rows = read_rows(whole.metrics)
    assert [row["exploration"] for row in rows if "bits_per_byte" not in row] == NOISE
    assert [(row["epsilon"], row["exploration"]) for row in rows if "bits_per_byte" in row] == [(0.0, 0.0)] * 2
    config = recipe(*BOTH, "run.name=halves", "validation.every=4")
    interrupted(config, 3)
    state = json.loads(next(checkpoints(config.run.path)[-1].rglob("state.json")).read_text(encoding="utf-8"))
    assert (state["step"], state["exploration"]) == (3, 0.75)
    halves = pretrain(config)
    assert rows_without_times(halves.metrics) == rows_without_times(whole.metrics)
    assert same_weights(halves.checkpoint, whole.checkpoint)


def test_another_schedule_is_another_run(recipe, interrupted):
    interrupted(recipe(*BOTH), 2)
    with pytest.raises(UserError, match=r"exploration\.zero"):
        pretrain(recipe(*BOTH[:2], "exploration={hold: 0.25, zero: 0.5}"))


def test_a_stack_without_such_layers_has_no_such_numbers(recipe):
    rows = read_rows(pretrain(recipe("model.pattern=rglru", "training.steps=2")).metrics)
    assert all(row["epsilon"] is None and "exploration" not in row for row in rows)


def test_what_a_model_has():
    config = load_config(None, ["data.folder=x", "training.steps=4", "exploration={start: 2, hold: 0.5, zero: 1}"])
    model = small("nfsm bmru")
    assert training_states(model) == switched_off(model) == {"epsilon": 0.0, "exploration": 0.0}
    assert training_states(small("rglru")) == {}
    assert scheduled(model, config, 3, 4) == {"epsilon": 0.0, "exploration": 1.0}
    put(model, scheduled(model, config, 0, 4))
    assert (model.epsilon, model.exploration) == (1.0, 2.0)
    assert not changing(training_states(model), config)
    assert changing(scheduled(model, config, 3, 4), config)
    with evaluating(model):
        assert training_states(model) == switched_off(model)
    assert (model.epsilon, model.exploration) == (1.0, 2.0)


def test_noise_starts_at_zero_where_the_weights_are_trained():
    least = ["data.folder=x", "training.steps=4"]
    assert load_config(None, least).exploration.start == 1.0
    assert load_config(None, [*least, "training.init_from=x/y"]).exploration.start == 0.0


def test_the_schedule_of_the_noise():
    config = ExplorationConfig(start=2.0, hold=0.25, zero=0.75)
    assert [annealed(step, 8, config) / 2 for step in range(8)] == NOISE


def test_the_callback_sets_it_in_a_step_and_nowhere_else():
    callback, model, control = (
        ExplorationCallback(start=1.0, hold=0.25, zero=0.75),
        small("nfsm bmru"),
        TrainerControl(),
    )
    wrapped = nn.Sequential(model)
    callback.on_train_begin(None, TrainerState(max_steps=8), control, model=wrapped)
    for step, value in enumerate(NOISE):
        state = TrainerState(global_step=step, max_steps=8, log_history=[{"loss": 1.0}])
        callback.on_step_begin(None, state, control, model=wrapped)
        assert (model.exploration, model.epsilon) == (value, 0.0)
        callback.on_step_end(None, state, control, model=wrapped)
        assert model.exploration == 0.0
        callback.on_log(None, state, control, logs={"loss": 1.0})
        assert state.log_history == [{"loss": 1.0, "exploration": value}]
    callback.on_step_begin(None, TrainerState(max_steps=8), control, model=small("bmru"))  # has none: left as it is
    with pytest.raises(UserError, match=r"ExplorationCallback: model=Linear has no hybridlm model inside"):
        callback.on_train_begin(None, TrainerState(max_steps=8), control, model=nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"ExplorationCallback: start=-1"):
        ExplorationCallback(start=-1)


def test_noise_is_drawn_again_alike_where_a_layer_is_computed_again():
    """Gradient checkpointing: the gradients are those without."""
    found, ids = [], torch.randint(0, 10, (2, 20))
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = small("nfsm nfsm").train()
        model.set_exploration(1.0)
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
