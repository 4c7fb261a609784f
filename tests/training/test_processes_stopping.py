"""What stops one of two processes stops both: with the same words, or after the same step with one checkpoint."""

import json
import signal
from pathlib import Path

import pytest
from comparing import assert_same
from launching import Done, launch

from hybridlm.training.checkpoints import STATE, checkpoints, damage
from hybridlm.training.config import config_yaml
from hybridlm.training.metrics import read_rows

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"


def in_two(config, folder: Path, *signalled) -> Done:
    """Trains in two processes, each of which ends by itself. signalled: the process that gets a signal, in which step,
    its number, and where in the step."""
    recipe = folder / f"{config.run.name}.yaml"
    recipe.write_text(config_yaml(config), encoding="utf-8")
    script = Path(__file__).with_name("two_signals.py")
    command = [script, recipe, *signalled] if signalled else [SCRIPT, "--config", recipe]
    return launch(command, ranks=2, apart=True)


@pytest.mark.parametrize("record", ["metrics.jsonl", "samples.jsonl"])
def test_a_record_that_cannot_be_opened_stops_both(recipe, tmp_path, record):
    """The main process alone opens the records; the other must not wait for it in its next collective."""
    config = recipe("logging.samples={every: 2, max_new_tokens: 2}")
    path = config.run.path / record
    path.mkdir(parents=True)
    done = in_two(config, tmp_path)
    assert done.returncodes == [2, 2], done.stderr[-4000:]
    said = f"{path} cannot be written (Is a directory). Make room, or choose another run.folder."
    for process in ("hybridlm pretrain: ", "hybridlm pretrain: process 1: "):
        assert f"{process}{said}\n" in done.stderr


def test_a_signal_to_one_process_stops_both_after_its_step(recipe, tmp_path):
    """In the middle of a step, and of a validation, which both give up. And 2 -> 2 processes go on with the bits of a
    run that was never stopped: dropout draws from the random numbers of each."""
    settings = (
        "training.steps=9", "training.batch_size=4", "training.ema_decay=0.9",
        "validation={every: 4, at_start: false, max_windows: 8, batch_size: 1}",
        "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2, attention_dropout: 0.2}",
    )  # fmt: skip
    whole, config = recipe(*settings, "run.name=whole"), recipe(*settings, "run.name=parts")
    done = in_two(whole, tmp_path)
    assert done.returncodes == [0, 0], done.stderr[-4000:]
    for process, step, number, code in ((1, 3, signal.SIGTERM, 143), (0, 8, signal.SIGUSR1, 138)):
        done = in_two(config, tmp_path, process, step, int(number), "validation" if step == 8 else "backward")
        assert done.returncodes == [code, code], done.stderr[-4000:]
        assert done.stdout.count(f"{number.name}: stopped after step {step} of 9.") == 1
        newest = checkpoints(config.run.path)[-1]
        assert (newest.name, damage(newest)) == (f"step-{step:08d}", None)
        state = json.loads((newest / STATE / "state.json").read_text(encoding="utf-8"))
        assert (state["step"], state["processes"]) == (step, 2)
    assert [path.name for path in checkpoints(config.run.path)] == ["step-00000003", "step-00000008"]
    assert [row["step"] for row in read_rows(config.run.path / "metrics.jsonl") if "bits_per_byte" in row] == [4]
    done = in_two(config, tmp_path)
    assert done.returncodes == [0, 0], done.stderr[-4000:]
    assert_same(config.run.path, whole.run.path)
