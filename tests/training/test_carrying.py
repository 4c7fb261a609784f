"""data.carry_state: rows that go on in the next batch; steps, checkpoints, and what it does not go with."""

import json
import shutil

import pytest
import torch
from comparing import seal
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from hybridlm.data.loader import batches
from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.carrying import CarriedStates, short_lanes, what_is_carried
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.diagnosis import FailedStep, find_cause
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.optimizer import build_optimizer
from hybridlm.training.random_state import RandomState
from hybridlm.training.resume import frozen_settings
from hybridlm.training.session import accelerator_session
from hybridlm.training.setup import build_model, open_data
from hybridlm.training.state import CARRIED
from hybridlm.training.step import Terms, backward, valid_targets

CARRY = (
    "data.carry_state=true", "model={pattern: rglru+bmru mamba2 nfsm, hidden_size: 16, mamba_d_head: 8}",
    "epsilon={start: 0.0}",
)  # fmt: skip


@pytest.fixture(scope="module")
def epochs(tmp_path_factory) -> tuple[str, ...]:
    """Settings of a run of more than one epoch: nine short documents."""
    folder = tmp_path_factory.mktemp("short")
    for i in range(9):
        text = " ".join(f"{'abcdefgh'[(5 * i + k * k) % 8]}{'aeiou'[k % 5]}" for k in range(14 + 5 * i))
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    sources, output = [{"path": str(folder / "*.txt")}], str(folder / "prepared")
    config = PrepareConfig(sources=sources, output=output, vocab_size=280, validation={"by": "position", "share": 0.1})
    prepare(config, log=lambda _: None)
    return (f"data.folder={output}", "training.steps=14", "validation.max_windows=2")


def losses_of(result):
    return [row["loss"] for row in read_rows(result.metrics) if "lr" in row]


def by_hand(config, steps):
    """The batches of the run, and a model at its start."""
    with accelerator_session(config) as accelerator:
        data = open_data(config, accelerator)
        size = config.training.batch_size
        stream = batches(data.windows, start_step=0, batch_size=size, micro_batch_size=size)
        return [next(stream)[0] for _ in range(steps)], build_model(config, data, None)


def nats(model, batch, cache):
    valid = int((batch["shift_labels"] != -100).sum())
    return model(**batch, past_key_values=cache, use_cache=False, keep_logits=False, num_items_in_batch=valid).loss


def test_steps_are_those_of_a_loop_by_hand(recipe):
    """Chunks behind one another with one cache, detached between them: the same bits."""
    constant = ("schedule={kind: linear, warmup_steps: 0}", "optimizer={lr: 1e-2, min_lr_ratio: 1.0, clip_norm: null}")
    config = recipe(*CARRY, *constant, "exploration={start: 0.0}")
    steps, model = by_hand(config, 4)
    optimizer, cache, losses = build_optimizer(model, config.optimizer), DynamicCache(config=model.config), []
    for batch in steps:
        loss = nats(model, batch, cache)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        for layer in cache.layers:
            layer.states = {name: state.detach() for name, state in layer.states.items()}
            layer.conv = layer.conv.detach()
    assert losses_of(pretrain(config)) == losses


def test_the_losses_are_those_of_one_long_forward(recipe):
    """With weights that stay as they are: what a row has seen reaches back to the beginning of its lane."""
    frozen = ("optimizer={lr: 1e-30, weight_decay: 0}", "exploration={start: 0.0}")
    settings = (*CARRY, *frozen, "training.micro_batch_size=2", "data.sequence_length=64", "training.steps=6")
    config = recipe(*settings)
    steps, model = by_hand(config, 6)
    whole = {name: torch.cat([batch[name] for batch in steps], dim=1) for name in steps[0]}
    assert not whole["position_ids"][:, 0].any()
    with torch.no_grad():
        logits = model(whole["input_ids"], position_ids=whole["position_ids"], use_cache=False).logits
        each = torch.nn.functional.cross_entropy(logits.mT, whole["shift_labels"], reduction="none").split(64, dim=1)
        again = [nats(model, batch, None) for batch in steps]
    wanted = [float(part.mean()) for part in each]
    found = losses_of(pretrain(config))
    assert found == pytest.approx(wanted, abs=2e-6)
    assert max(abs(float(x) - y) for x, y in zip(again[1:], found[1:], strict=True)) > 1e-4  # the state does matter


@pytest.mark.parametrize("extra", [(), ("training.micro_batch_size=2", "training.mixed_precision=bf16")])
def test_a_resumed_run_is_one_that_never_stopped(recipe, epochs, interrupted, same_run, extra):
    whole = pretrain(recipe(*CARRY, *epochs, *extra, "run.name=whole"))
    config = recipe(*CARRY, *epochs, *extra, "run.name=halves")
    interrupted(config, 4)
    kept = load_file(checkpoints(config.run.path)[-1] / STATE / CARRIED)
    assert {tensor.shape[0] for tensor in kept.values()} == {4}
    assert kept["layers.2.0.s"].dtype == torch.uint8
    assert same_run(whole, pretrain(config))
    ends = [load_file(checkpoints(run.run_folder)[-1] / STATE / CARRIED) for run in (whole, pretrain(config))]
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())
    assert not any((whole.run_folder / "final" / STATE).glob(CARRIED))


def test_nothing_is_carried_while_units_count(recipe, epochs, interrupted, same_run, monkeypatch):
    """Above epsilon = 0 windows begin anew; then states go on, also behind a stop on either side of that step."""
    settings = (*CARRY, *epochs, "epsilon={start: 1.0, hold: 0.1, zero: 0.4}")
    given = []
    monkeypatch.setattr(loop, "backward", lambda *args: given.append(args[-1] is not None) or backward(*args))
    whole = pretrain(recipe(*settings, "run.name=whole"))
    epsilons = [row["epsilon"] for row in read_rows(whole.metrics) if "lr" in row]
    assert given == [epsilon == 0 for epsilon in epsilons]
    assert 4 < epsilons.index(0.0) < 8
    for step in (4, 8):
        config = recipe(*settings, f"run.name=stopped{step}")
        interrupted(config, step)
        kept = load_file(checkpoints(config.run.path)[-1] / STATE / CARRIED)
        assert bool(kept) == (step == 8)
        assert same_run(whole, pretrain(config))


def test_the_state_is_what_a_resumed_run_goes_on_from(recipe, epochs, interrupted):
    """Zeros in its place, and the losses are others."""
    config = recipe(*CARRY, *epochs)
    whole = losses_of(pretrain(recipe(*CARRY, *epochs, "run.name=whole")))
    interrupted(config, 4)
    folder = checkpoints(config.run.path)[-1]
    path = folder / STATE / CARRIED
    kept = load_file(path)
    save_file({name: torch.zeros_like(tensor) for name, tensor in kept.items()}, path)
    seal(folder)
    changed = losses_of(pretrain(config))
    assert changed[:4] == whole[:4]
    assert changed[4] != whole[4]


def test_micro_batches_of_another_size_go_on_from_the_same_rows(recipe, epochs, interrupted):
    """Without cells that decide: rounding, which depends on the size, may tip a decision."""
    settings = (*CARRY, *epochs, "model.pattern=rglru mamba2")
    whole = losses_of(pretrain(recipe(*settings, "run.name=whole")))
    interrupted(recipe(*settings, "training.micro_batch_size=2"), 4)
    found = losses_of(pretrain(recipe(*settings, "training.micro_batch_size=1")))
    assert found == pytest.approx(whole, abs=2e-5)


def test_a_checkpoint_whose_states_are_not_there(recipe, interrupted):
    config = recipe(*CARRY)
    interrupted(config, 2)
    folder = checkpoints(config.run.path)[-1]
    kept = folder / STATE / CARRIED
    shutil.copy(kept, folder.parent / "kept")
    kept.write_bytes(kept.read_bytes()[:100])
    seal(folder)
    with pytest.raises(UserError, match=rf"{CARRIED} is damaged"):
        pretrain(config)
    kept.unlink()
    seal(folder)
    with pytest.raises(UserError, match=rf"{CARRIED} is damaged"):
        pretrain(config)


def test_it_is_not_switched_on_or_off_in_the_middle(recipe, interrupted):
    config = recipe(*CARRY)
    assert frozen_settings(config)["data.carry_state"] is True
    interrupted(config, 2)
    with pytest.raises(UserError, match=r"data\.carry_state: was True, is now False"):
        pretrain(recipe(*CARRY, "data.carry_state=false"))
    plain = recipe(*CARRY, "data.carry_state=false", "run.name=plain")
    interrupted(plain, 2)
    path = checkpoints(plain.run.path)[-1] / STATE / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["settings"]["data.carry_state"]  # as versions wrote it that did not know it
    path.write_text(json.dumps(state), encoding="utf-8")
    seal(path.parent.parent)
    with pytest.raises(UserError, match=r"data\.carry_state: was False, is now True"):
        pretrain(recipe(*CARRY, "run.name=plain"))
    assert pretrain(plain).checkpoint.is_dir()


def test_what_cannot_be_carried_is_refused(recipe):
    with pytest.raises(UserError) as caught:
        recipe(
            "data.carry_state=true", "training.gradient_checkpointing=true",
            "model={pattern: rglru attention bmru sliding_attention, hidden_size: 16, num_attention_heads: 2}",
        )  # fmt: skip
    said = str(caught.value)
    assert "data.carry_state=true: layer 1: attention, layer 3: sliding_attention of model.pattern='rglru att" in said
    assert "training.gradient_checkpointing=true" in said
    recipe("training.gradient_checkpointing=true")  # without it
    with pytest.raises(UserError, match=r"data: 'carry_restart' is for carry_state"):
        recipe("data.carry_restart=0.1")


def test_a_failed_step_is_run_again_from_what_it_went_on_from(recipe):
    """The search for what is not finite sees the states of the step, and leaves them as they are."""
    config = recipe(*CARRY, "training.micro_batch_size=2")
    with accelerator_session(config) as accelerator:
        data = open_data(config, accelerator)
        model = build_model(config, data, None)
        carried, seen = CarriedStates(model.config, 2), []
        stream = batches(data.windows, start_step=0, batch_size=4, micro_batch_size=2)
        model.model.norm.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
        for number in range(3):
            step = next(stream)
            failed = FailedStep(
                step, valid_targets(accelerator, step), Terms(), RandomState(accelerator.device), carried
            )
            backward(accelerator, model, step, failed.valid, carried=carried)
            if number < 2:
                carried.move_on()
        before = carried.gathered(accelerator)
        model.zero_grad()
        assert find_cause(accelerator, model, failed) is None
        assert len(seen) == 3 * 2 + 4
        for again in (seen[-4:-2], seen[-2:]):
            assert all(torch.equal(one, two) for one, two in zip(again, seen[4:6], strict=True))
        cache = carried.cache(0)
        with torch.no_grad():  # which writes into what a cache holds
            model(step[0]["input_ids"], past_key_values=cache)
        assert all(torch.equal(tensor, before[name]) for name, tensor in carried.gathered(accelerator).items())


def test_a_run_says_so(recipe, capsys):
    pretrain(recipe(*CARRY, "training.steps=1"))
    assert "state:      carried from batch to batch, 4 lanes\n" in capsys.readouterr().out
    pretrain(recipe("training.steps=1", "run.name=plain"))
    assert "state:  " not in capsys.readouterr().out
    annealed = recipe(*CARRY, "epsilon={start: 1.0}", "data.carry_restart=0.05")
    said = "carried from batch to batch, 4 lanes, once epsilon is 0; 0.05 of the sequences begin anew"
    assert what_is_carried(annealed) == said
    assert "epsilon" not in what_is_carried(recipe(*CARRY, "epsilon={start: 1.0}", "model.pattern=rglru cmru"))


def test_rows_that_begin_anew_are_those_of_a_run_without(recipe):
    """Of all rows: windows of the reset state, in the order of lanes."""
    frozen = (*CARRY, "optimizer={lr: 1e-30, weight_decay: 0}", "exploration={start: 0.0}", "data.carry_restart=1.0")
    config = recipe(*frozen)
    steps, model = by_hand(config, 4)
    assert not any(bool(batch["position_ids"][:, 0].any()) for batch in steps)
    with torch.no_grad():
        wanted = [float(nats(model, batch, None)) for batch in steps]
    assert losses_of(pretrain(config)) == pytest.approx(wanted, abs=2e-6)


def test_validation_is_the_same_as_without(recipe):
    settings = (*CARRY, "validation={at_start: true, max_windows: 9}", "training.steps=1")
    one = pretrain(recipe(*settings)).metrics
    two = pretrain(recipe(*settings, "data.carry_state=false", "run.name=plain")).metrics
    first, other = (read_rows(path)[0] for path in (one, two))
    assert first["step"] == 0
    assert first["bits_per_byte"] == other["bits_per_byte"]


def test_lanes_that_are_too_short_are_said(recipe, capsys):
    config = recipe(*CARRY, "data.sequence_length=16", "training={steps: 1, batch_size: 4}")
    long = short_lanes(config, 4 * 15, 241)
    assert long == (
        "An epoch has 4 lanes of 15 sequences (240 tokens), and the mean document 241 tokens: documents are cut where "
        "a lane ends, and states with them. Lower training.batch_size, or take more text."
    )
    assert short_lanes(config, 4 * 15, 240) == ""  # documents are no longer than a lane
    assert short_lanes(config, 4 * 16, 1e9) == ""  # a lane is many sequences
    assert (
        "4 lanes of 1 sequence (16 tokens), and the mean document 5 tokens: no state is carried at all"
        in short_lanes(config, 4, 5)
    )
    assert short_lanes(recipe(), 1, 1e9) == ""
    pretrain(config)
    assert "warning:" not in capsys.readouterr().out
    pretrain(recipe(*CARRY, "data.sequence_length=5000", "training={steps: 1, batch_size: 4}", "run.name=short"))
    assert "\nwarning:    An epoch has 4 lanes of 1 sequence (5,000 tokens), " in capsys.readouterr().out
