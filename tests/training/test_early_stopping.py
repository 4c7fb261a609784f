"""A run that stops getting better: the best model is kept, the end is the same after a resume."""

import json
import shutil

import pytest
from comparing import seal

from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.checkpoints import STATE, checkpoints, write_sealed
from hybridlm.training.early_stopping import EarlyStopping
from hybridlm.training.lock import LOCK
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows


def seen(values: list[float], patience: int | None, least: float = 0.0) -> tuple[list[int], int | None]:
    """After which of the validations the model is the best one so far; after which the run stops."""
    watch, best = EarlyStopping(patience, least), []
    for step, value in enumerate(values):
        if watch.see(step, value, windows=4):
            best.append(step)
        if watch.stopped:
            return best, step
    return best, None


def test_patience_counts_validations_without_an_improvement():
    assert seen([3.0, 2.9, 2.95, 2.8, 2.8, 2.81, 2.7], patience=2) == ([0, 1, 3], 5)
    assert seen([3.0, 2.9, 2.95, 2.8, 2.8, 2.81, 2.7], patience=3) == ([0, 1, 3, 6], None)
    assert seen([3.0, 3.1, 3.2, 3.3], patience=None) == ([0], None)
    assert seen([3.0, 3.0], patience=1) == ([0], 1)


def test_small_steps_are_the_best_model_and_no_improvement():
    assert seen([3.0, 2.9375, 2.875, 2.75, 2.6875], patience=2, least=0.25) == ([0, 1, 2], 2)
    # Improvements add up against the last one that counted.
    assert seen([3.0, 2.9375, 2.75, 2.6875, 2.625], patience=2, least=0.25) == ([0, 1, 2, 3, 4], 4)
    assert seen([3.0, 2.75], patience=1, least=0.25) == ([0, 1], None)  # exactly enough


def test_its_state_goes_on_and_other_windows_start_anew():
    whole, first = (EarlyStopping(3, 0.1) for _ in range(2))
    values = [3.0, 2.95, 2.99]
    for step, value in enumerate(values):
        whole.see(step, value, 4)
    for step in (0, 1):
        first.see(step, values[step], 4)
    second = EarlyStopping(3, 0.1, json.loads(json.dumps(first.state())))
    second.see(2, values[2], 4)
    assert second.state() == whole.state()
    assert (whole.seen.best, whole.seen.best_step, whole.seen.waited) == (2.95, 1, 2)
    assert whole.see(3, 5.0, windows=9)  # more of the split: no number to compare with
    assert (whole.seen.mark, whole.seen.waited) == (5.0, 0)


@pytest.fixture
def bits(monkeypatch):
    """`bits(step -> bits per byte)`: what validations find. Weights are the run's own."""

    def use(values: dict[int, float]) -> None:
        measure, steps = loop.validate, loop._Run._validate

        def note(self, *args):
            note.at = self.done
            return steps(self, *args)

        def found(*args):
            result = measure(*args)
            return result and result | {"bits_per_byte": values[note.at]}

        monkeypatch.setattr(loop._Run, "_validate", note)
        monkeypatch.setattr(loop, "validate", found)

    return use


CURVE = {1: 3.0, 2: 2.5, 3: 2.6, 4: 2.7, 5: 2.6, 6: 2.4}
STOPPING = ("training.steps=6", "validation={every: 1, patience: 3, at_start: false, max_windows: 4}")


def state_of(folder) -> dict:
    return json.loads((folder / STATE / "state.json").read_text(encoding="utf-8"))


def test_a_run_that_stops_early_is_finished(recipe, bits, capsys, same_weights):
    bits(CURVE)
    config = recipe(*STOPPING, "checkpoint={every: 1, keep: 9}", "logging.samples={every: 4, max_new_tokens: 2}")
    result = pretrain(config)
    run = config.run.path
    rows = read_rows(result.metrics)
    assert max(row["step"] for row in rows) == 5
    assert result.validation["step"] == 5
    assert [row["step"] for row in read_rows(run / "samples.jsonl")] == [4, 5]
    assert "Stopped early: 3 validations in a row brought no improvement. The best model, of step 2 with 2.5000" in (
        text := capsys.readouterr().out
    )
    assert "Finished 5 of 6 steps" in text

    state = state_of(result.checkpoint)
    assert (state["step"], state["total_steps"], state["stopped_early"]) == (5, 6, True)
    best = state_of(run / "best")
    assert (best["step"], best["stopped_early"], best["epsilon"]) == (2, False, 0.0)
    assert best["early_stopping"]["best"] == 2.5
    assert same_weights(run / "best", run / "checkpoints" / "step-00000002")
    assert same_weights(run / "final", run / "checkpoints" / "step-00000005")

    stamp = (result.checkpoint / "model.safetensors").stat().st_mtime_ns
    assert pretrain(recipe(*STOPPING, "validation.patience=9")) == result
    assert (
        "This run is finished; nothing to do. It stopped early, after step 5 of 6; for more steps, begin another run "
        "from its model, with training.init_from under another run.name."
    ) in capsys.readouterr().out
    assert (result.checkpoint / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("at", [2, 4, 5])
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(recipe, bits, interrupted, same_run, at):
    bits(CURVE)
    whole = pretrain(recipe(*STOPPING, "run.name=whole"))
    config = recipe(*STOPPING, "run.name=halves")
    if at == 5:  # killed between the last checkpoint and the final model
        pretrain(config)
        (config.run.path / "final").rename(config.run.path / "gone")
    else:
        interrupted(config, at)
    halves = pretrain(config)
    assert same_run(whole, halves, "best")
    one, two = (state_of(result.checkpoint) for result in (whole, halves))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert one["early_stopping"] == {"best": 2.5, "best_step": 2, "mark": 2.5, "waited": 3, "windows": 4}


def test_more_patience_lets_an_interrupted_run_go_on(recipe, bits):
    bits(CURVE)
    config = recipe(*STOPPING)
    pretrain(config)
    (config.run.path / "final").rename(config.run.path / "gone")
    patient = pretrain(recipe(*STOPPING, "validation.patience=4"))
    assert (state_of(patient.checkpoint)["step"], state_of(patient.checkpoint)["stopped_early"]) == (6, False)
    assert state_of(config.run.path / "best")["step"] == 6


def test_the_best_model_is_kept_without_stopping_too(recipe, bits, same_weights):
    bits(CURVE | {6: 2.8})
    config = recipe("training.steps=6", "validation.every=1", "checkpoint={every: 1, keep: 9}")
    result = pretrain(config)
    assert state_of(result.checkpoint)["stopped_early"] is False
    assert same_weights(config.run.path / "best", checkpoints(config.run.path)[1])
    assert [path.name for path in config.run.path.glob(".*")] == [LOCK]


@pytest.fixture
def undone(recipe, bits):
    """A run of six steps whose best model is that of the last one; it is now about to take steps 5 and 6 again."""
    bits(CURVE)
    config = recipe("training.steps=6", "validation.every=1", "checkpoint={every: 1, keep: 9}")
    pretrain(config)
    run = config.run.path
    assert state_of(run / "best")["step"] == 6
    for name in ("final", "checkpoints/step-00000005", "checkpoints/step-00000006"):
        shutil.rmtree(run / name)
    return config, run


def test_a_best_model_whose_step_was_undone_is_replaced(undone, bits, capsys, same_weights):
    """By that of the next validation, even one that is worse than what the checkpoint knows: that model is gone."""
    config, run = undone
    bits({5: 2.55, 6: 2.6})  # not the numbers of before, as on a GPU
    pretrain(config)
    said = capsys.readouterr().out
    assert f"{run / 'best'} is the model of step 6, which the checkpoint of step 4 does not know." in said
    assert state_of(run / "best")["step"] == 5
    assert same_weights(run / "best", run / "checkpoints" / "step-00000005")
    seen = state_of(run / "final")["early_stopping"]
    assert seen == {"best": 2.55, "best_step": 5, "mark": 2.5, "waited": 4, "windows": 4}  # patience as ever


def test_on_a_cpu_the_same_best_model_comes_again(undone, bits, recipe, capsys, same_run):
    config, run = undone
    bits(CURVE)
    again = pretrain(config)
    whole = pretrain(recipe("training.steps=6", "validation.every=1", "run.name=whole"))
    assert same_run(whole, again, "best")
    assert state_of(run / "final")["early_stopping"] == state_of(whole.checkpoint)["early_stopping"]
    # One that was removed is made anew, and the run does not speak of a folder that is not there.
    for name in ("final", "best"):
        shutil.rmtree(run / name)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    bits({6: 9.0})
    pretrain(config)
    assert "best, the model of step 5, is not there or damaged. The next validation writes it anew." in (
        capsys.readouterr().out
    )
    assert state_of(run / "best")["early_stopping"]["best"] == 9.0


def test_a_damaged_best_model_is_written_anew(undone, bits, capsys, same_weights):
    """Its state alone is whole, and of the step that the checkpoint knows."""
    config, run = undone
    shutil.rmtree(run / "best")
    write_sealed(run / "best", lambda folder: shutil.copytree(checkpoints(run)[-1], folder, dirs_exist_ok=True))
    state = state_of(checkpoints(run)[-1])
    path = run / "best" / STATE / "state.json"
    path.write_text(json.dumps(state | {"step": state["early_stopping"]["best_step"]}), encoding="utf-8")
    seal(run / "best")
    (run / "best" / "model.safetensors").write_bytes(b"x")
    bits({5: 9.0, 6: 9.5})
    pretrain(config)
    assert "best, the model of step 2, is not there or damaged. The next validation writes it anew." in (
        capsys.readouterr().out
    )
    assert same_weights(run / "best", run / "checkpoints" / "step-00000005")


def test_patience_without_a_validation_split_is_refused(recipe, tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five. " * 200, encoding="utf-8")
    source = f"{{path: {tmp_path / 'text.txt'}}}"
    settings = f"{{sources: [{source}], output: {tmp_path / 'data'}, vocab_size: 270, validation: {{share: 0}}}}"
    with pytest.raises(UserError, match=r"validation\.patience=3: the data has no validation split"):
        pretrain(recipe(*STOPPING, "data.folder=null", f"data.prepare={settings}"))
