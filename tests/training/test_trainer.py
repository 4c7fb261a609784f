"""transformers.Trainer trains the models: epsilon annealed, evaluation at 0, a resumed run equal to the last bit."""

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from models import VOCABULARY, make_ids, make_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import hybridlm
from hybridlm.errors import UserError
from hybridlm.training import EpsilonCallback
from hybridlm.training.schedules import annealed
from hybridlm.training.sections import EpsilonConfig

STEPS = 6
PATTERN = "rglru bmru attention"
SMOOTH = "rglru attention"
"""For comparisons up to rounding: a `bmru` on the edge of writing would make a large difference of it."""
SCHEDULE = {"start": 0.9, "hold": 0.2, "zero": 0.8}


def counting(rows, lengths=(12,), seed=0):
    """Texts in which each token is the one before plus one: quickly learned."""
    starts = torch.randint(1, VOCABULARY, (rows,), generator=torch.Generator().manual_seed(seed))
    texts = [(start + torch.arange(lengths[i % len(lengths)])) % (VOCABULARY - 1) + 1 for i, start in enumerate(starts)]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in texts]


def padded(rows):
    """Texts of several lengths beside one another, padded on the right."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row["labels"]) for row in rows], batch_first=True),
    }


class Spy(TrainerCallback):
    """What epsilon is where the Trainer calls."""

    def __init__(self):
        self.seen = {"optimizer_step": [], "substep_end": [], "prediction_step": [], "save": []}

    def _note(name):
        def note(self, args, state, control, model=None, **kwargs):
            self.seen[name].append(model.epsilon)

        return note

    on_optimizer_step, on_substep_end = _note("optimizer_step"), _note("substep_end")
    on_prediction_step, on_save = _note("prediction_step"), _note("save")


@pytest.fixture
def trainer(tmp_path):
    """trainer(model, callbacks, data to train and to evaluate on, ..., **arguments of TrainingArguments)."""

    def make(
        model, callbacks=(), data=None, held_out=None, collator=None, compute_metrics=None, folder="out", **arguments
    ):
        defaults = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return Trainer(
            model=model,
            args=TrainingArguments(str(tmp_path / folder), **(defaults | arguments)),
            train_dataset=data or counting(32),
            eval_dataset=held_out or counting(6, seed=1),
            data_collator=collator,
            compute_metrics=compute_metrics,
            callbacks=list(callbacks),
        )

    return make


def logged(trained, name="loss"):
    return [row[name] for row in trained.state.log_history if name in row]


def annealing():
    return EpsilonCallback(**SCHEDULE)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_epsilon_follows_the_schedule_and_is_0_between_steps(trainer, accumulate):
    spy = Spy()
    model = make_model(PATTERN)
    trained = trainer(
        model,
        [annealing(), spy],
        gradient_accumulation_steps=accumulate,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=2,
    )
    trained.train()
    wanted = [annealed(step, STEPS, EpsilonConfig(**SCHEDULE)) for step in range(STEPS)]
    assert wanted[0] == 0.9
    assert 0 < wanted[3] < wanted[2] < 0.9
    assert wanted[-1] == 0
    assert spy.seen["optimizer_step"] == wanted
    assert spy.seen["substep_end"] == (wanted if accumulate == 2 else [])
    assert logged(trained, "epsilon") == wanted
    assert [row["step"] for row in trained.state.log_history if "epsilon" in row] == [*range(1, STEPS + 1)]
    assert spy.seen["prediction_step"] == [0.0] * 2 * (1 + STEPS)
    assert spy.seen["save"] == [0.0] * 3
    assert model.epsilon == 0.0


def test_a_run_that_another_callback_stops_inside_a_step_ends_at_0(trainer):
    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    model = make_model(PATTERN)
    trainer(model, [annealing(), Stop()], gradient_accumulation_steps=2).train()
    assert model.epsilon == 0.0


def test_an_epoch_that_ends_inside_a_step_is_evaluated_at_0(trainer):
    """The evaluation at its end comes before the run ends."""

    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = True

    spy = Spy()
    once = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 2, "eval_strategy": "epoch"}
    trainer(make_model(PATTERN), [annealing(), Stop(), spy], **once).train()
    assert spy.seen["substep_end"] == [0.9]
    assert spy.seen["optimizer_step"] == []
    assert spy.seen["prediction_step"] == [0.0] * 2


def test_it_learns_and_evaluates(trainer):
    """Loss and metric of the Trainer's evaluation are those of the saved model, computed by hand."""

    def accuracy(predictions):
        hits = predictions.predictions[:, :-1].argmax(-1) == predictions.label_ids[:, 1:]
        return {"accuracy": hits.mean()}

    trained = trainer(make_model(PATTERN), [EpsilonCallback()], max_steps=60, compute_metrics=accuracy)
    before = trained.evaluate()
    trained.train()
    after = trained.evaluate()
    assert before["eval_accuracy"] < 0.1
    assert after["eval_accuracy"] > 0.8
    trained.save_model()
    model = AutoModelForCausalLM.from_pretrained(trained.args.output_dir)
    ids = torch.stack([row["input_ids"] for row in counting(6, seed=1)])
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
    assert after["eval_loss"] == pytest.approx(float(output.loss), abs=1e-5)
    hits = (output.logits[:, :-1].argmax(-1) == ids[:, 1:]).float().mean()
    assert after["eval_accuracy"] == pytest.approx(float(hits), abs=1e-6)


def first_tokens(rows, seed, length):
    """Texts whose label, 0 or 1, is their first token; up to `length` others follow."""
    ids = make_ids(rows, length + 1, seed=seed)
    ids[:, 0] %= 2
    return [{"input_ids": text[: length + 1 - i % 3], "labels": text[0]} for i, text in enumerate(ids)]


def padded_texts(rows):
    pad = nn.utils.rnn.pad_sequence
    texts = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(texts, batch_first=True),
        "attention_mask": pad([torch.ones_like(text) for text in texts], batch_first=True),
        "labels": torch.stack([row["labels"] for row in rows]),
    }


def test_a_classifier_is_fine_tuned(trainer, tmp_path):
    """From the checkpoint of a language model, on texts of several lengths; it has to carry the first token along."""
    make_model(PATTERN).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    trained = trainer(
        model,
        [EpsilonCallback(start=0.0)],
        data=first_tokens(512, seed=1, length=6),
        held_out=first_tokens(64, seed=2, length=6),
        collator=padded_texts,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
        max_steps=100,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
    )
    assert trained.evaluate()["eval_accuracy"] < 0.7
    trained.train()
    assert trained.evaluate()["eval_accuracy"] > 0.95
    trained.save_model(tmp_path / "tuned")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    batch = padded_texts(first_tokens(4, seed=3, length=6))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trained.model(**batch).logits)


def head(auto, problem=None):
    torch.manual_seed(0)
    return auto.from_config(make_model(SMOOTH, num_labels=3, problem_type=problem).config)


def labelled_tokens(rows):
    """Texts in which some tokens have no label; how many differs widely."""
    texts = [row["input_ids"] for row in counting(rows)]
    return [
        {"input_ids": ids, "labels": (ids % 3).where(torch.arange(12) <= 5 * i % 11, -100)}
        for i, ids in enumerate(texts)
    ]


def labelled_texts(rows, label):
    return [{"input_ids": row["input_ids"], "labels": label(row["input_ids"])} for row in counting(rows)]


HEADS = {
    "tokens": (lambda: head(AutoModelForTokenClassification), labelled_tokens(7)),
    "classes": (lambda: head(AutoModelForSequenceClassification), labelled_texts(7, lambda ids: ids[3] % 3)),
    "several": (
        lambda: head(AutoModelForSequenceClassification, "multi_label_classification"),
        labelled_texts(7, lambda ids: (ids[:3] % 2).float()),
    ),
    "numbers": (
        lambda: head(AutoModelForSequenceClassification, "regression"),
        labelled_texts(7, lambda ids: ids[:3] / 30),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_accumulated_gradients_are_those_of_the_whole_batch(trainer, name):
    """7 texts at once, and as batches of 2, 2, 2 and 1: one step of plain gradient descent."""
    make, data = HEADS[name]
    found = []
    for size, parts in ((7, 1), (2, 4)):
        once = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.1}
        once |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        trained = trainer(make(), data=data, **once)
        before = {key: tensor.clone() for key, tensor in trained.model.state_dict().items()}
        trained.train()
        moved = {key: tensor - before[key] for key, tensor in trained.model.state_dict().items()}
        found.append((logged(trained)[0], moved))
    (whole_loss, whole), (loss, moved) = found
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    largest = max(float(change.abs().max()) for change in whole.values())
    assert largest > 1e-3
    for key, change in whole.items():
        assert (moved[key] - change).abs().max() <= 1e-5 * largest, key


@pytest.fixture
def losses(trainer):
    """losses(pattern, **arguments): of a run on texts of three lengths, padded where no collator says otherwise."""

    def train(pattern, **arguments):
        arguments = {"data": counting(32, (12, 7, 4)), "collator": padded} | arguments
        trained = trainer(make_model(pattern), [annealing()], **arguments)
        trained.train()
        assert trained.model.is_activation_checkpointing == ("activation_checkpointing" in arguments)
        assert all(parameter.dtype == torch.float32 for parameter in trained.model.parameters())
        found = logged(trained)
        assert len(found) == STEPS
        return found

    return train


def test_recomputed_layers_change_no_bit(losses):
    """epsilon is still the step's own where the backward pass runs the forward again."""
    assert losses(PATTERN, activation_checkpointing=True) == losses(PATTERN)


def test_bf16_trains(losses):
    found, exact = losses(SMOOTH, bf16=True), losses(SMOOTH)
    assert found != exact
    assert found == pytest.approx(exact, rel=0.05)


def test_packed_rows_train_as_padded_ones(losses):
    assert losses(SMOOTH, collator=DataCollatorWithFlattening()) == pytest.approx(losses(SMOOTH), abs=1e-4)


def test_accumulated_micro_batches_are_one_batch(losses):
    halves = losses(SMOOTH, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert halves == pytest.approx(losses(SMOOTH), abs=1e-4)


def test_resumed_is_never_stopped_bit_for_bit(trainer):
    options = {"save_strategy": "steps", "save_steps": 2, "attention_dropout": 0.1}
    dropout = options.pop("attention_dropout")
    whole = trainer(make_model(PATTERN, attention_dropout=dropout), [annealing()], folder="whole", **options)
    whole.train()
    spy = Spy()
    rest = trainer(make_model(PATTERN, seed=9, attention_dropout=dropout), [annealing(), spy], folder="rest", **options)
    rest.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert spy.seen["optimizer_step"] == [annealed(step, STEPS, EpsilonConfig(**SCHEDULE)) for step in range(2, STEPS)]
    assert logged(rest) == logged(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], tensor), name


def test_a_pattern_without_bmru_is_left_as_it_is(trainer):
    model = make_model("rglru cmru")
    trained = trainer(model, [annealing()], max_steps=2)
    trained.train()
    assert model.epsilon is None
    assert logged(trained, "epsilon") == []
    assert [cell.epsilon for cell in model._memory_cells()] == [1.0]  # cmru counts: not ours to set


def call(callback, model, step=0):
    callback.on_step_begin(None, TrainerState(global_step=step, max_steps=10), TrainerControl(), model=model)


def test_wrapped_models_are_found():
    model = make_model("rglru bmru")
    for wrapped in (nn.Sequential(model), torch.compile(model, backend="eager"), model.model):
        model.set_epsilon(0.0)
        call(annealing(), wrapped)
        assert model.epsilon == 0.9


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None])
def test_a_model_of_others_is_refused(model):
    with pytest.raises(UserError, match="no hybridlm model inside"):
        annealing().on_train_begin(None, TrainerState(max_steps=10), TrainerControl(), model=model)


@pytest.mark.parametrize(
    ("shares", "says"),
    [({"start": 1.5}, "start=1.5"), ({"hold": -0.1}, "hold=-0.1"), ({"hold": 0.5, "zero": 0.4}, "hold=0.5 must not")],
)
def test_shares_out_of_range_are_refused(shares, says):
    with pytest.raises(UserError, match=says):
        EpsilonCallback(**shares)


def test_the_defaults_are_those_of_a_recipe():
    assert EpsilonCallback().schedule == EpsilonConfig(start=1.0)


def test_two_processes_train_as_one(trainer, tmp_path):
    """Under torchrun: the losses of one process with the same batches, a resumed run, an evaluation, no noise."""
    one = trainer(make_model(SMOOTH), eval_strategy="steps", eval_steps=3)
    one.train()
    labelled = trainer(head(AutoModelForTokenClassification), data=labelled_tokens(32))
    labelled.train()
    done = launch([Path(__file__).with_name("two_trainers.py"), tmp_path], ranks=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    facts = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert [(fact["rank"], fact["world"]) for fact in facts] == [(0, 2), (1, 2)]
    wanted = [annealed(step, STEPS, EpsilonConfig(**SCHEDULE)) for step in range(STEPS)]
    for fact in facts:
        assert fact["wrapped"] == "DistributedDataParallel"
        assert fact["loss"] == pytest.approx(logged(one), abs=1e-5)
        assert fact["eval_loss"] == pytest.approx(logged(one, "eval_loss"), abs=1e-5)
        assert fact["labelled_loss"] == pytest.approx(logged(labelled), abs=1e-5)
        assert fact["epsilon"] == wanted
        assert fact["resumed_epsilon"] == wanted[2:]
        assert fact["resumed_loss"] == fact["annealed_loss"]
        assert set(fact["epsilon_in_evaluation"]) == {0.0}
    assert str(Path(hybridlm.__file__).parent) not in done.stderr, done.stderr  # the place of a warning of ours
