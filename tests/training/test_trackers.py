"""Trackers: the same run after a resume, no row twice, and a failure that stops nothing."""

import json

import pytest

from hybridlm.training import trackers
from hybridlm.training.journal import Journal
from hybridlm.training.loop import pretrain
from hybridlm.training.memory import flat_statistics
from hybridlm.training.metrics import read_rows

TWELVE = ("training.steps=12", "checkpoint.every=4", "validation={every: 3, at_start: true}", "logging.every=1")


class Fake:
    """A tracker that keeps what it is given. fails: the call that raises, and from which step on."""

    def __init__(self, name, identity, fails=("", 0)):
        self.name, self.identity, self.fails = name, identity, fails
        self.rows, self.calls, self.settings = [], [], {}

    def _call(self, name, step=0):
        self.calls.append(name)
        if name == self.fails[0] and step >= self.fails[1]:
            raise ConnectionError("the network is down.\nand more")

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        self._call("log", step)
        self.rows.append((step, values))

    def finish(self):
        self._call("finish")


@pytest.fixture
def made(monkeypatch):
    """The trackers that runs made, in order; `made.fails` is handed to the next ones."""

    class Made(list):
        fails = ("", 0)

    found = Made()

    def make(name, config, run_id, done, resumed):
        found.append(Fake(name, (run_id, done, resumed), found.fails))
        return found[-1]

    monkeypatch.setattr(trackers, "_make", make)
    monkeypatch.setattr("hybridlm.training.session.check_trackers", lambda _: None)
    return found


def crash_at(monkeypatch, step):
    write = Journal.step

    def step_and_crash(self, row, *args):
        write(self, row, *args)
        if row["step"] == step:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Journal, "step", step_and_crash)


def steps(tracker, kind):
    return [step for step, values in tracker.rows if any(name.startswith(f"{kind}/") for name in values)]


def test_rows_are_those_of_the_record(recipe, made):
    samples = "logging.samples={every: 6, prompts: ['The sea', ''], max_new_tokens: 3}"
    result = pretrain(recipe(*TWELVE, "logging.every=5", samples, "logging.trackers=[wandb]"))
    (tracker,) = made
    rows = read_rows(result.metrics)
    training = {row["step"]: row for row in rows if "lr" in row}
    assert steps(tracker, "train") == [5, 10, 12]
    assert steps(tracker, "validation") == [0, 3, 6, 9, 12]
    logged = dict(row for row in tracker.rows if "train/loss" in row[1])
    plain = {name: value for name, value in training[10].items() if name not in ("step", "memory")}
    memory = {f"memory/{name}": value for name, value in flat_statistics(training[10]["memory"]).items()}
    assert logged[10] == {f"train/{name}": value for name, value in (plain | memory).items()}
    assert "train/memory/1.bmru/write_share" in logged[10]
    written = [values for _, values in tracker.rows if any(name.startswith("sample/") for name in values)]
    assert [next(iter(values)) for values in written] == ["sample/The sea", "sample/(start of a document)"] * 2
    assert tracker.settings["training.steps"] == 12
    assert tracker.calls[0] == "start"
    assert tracker.calls[-1] == "finish"


def test_a_resumed_run_goes_on_in_the_same_run_without_a_row_twice(recipe, made, monkeypatch):
    config = recipe(*TWELVE, "logging.trackers=[wandb, tensorboard]")
    with monkeypatch.context() as patch:
        crash_at(patch, 7)  # the newest checkpoint is of step 4
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config)
    pretrain(recipe(*TWELVE, "logging.trackers=[wandb, tensorboard, trackio]"))
    (wandb, board, wandb_again, board_again, trackio) = made
    assert [name.name for name in made] == ["wandb", "tensorboard", "wandb", "tensorboard", "trackio"]
    (run_id,) = {tracker.identity[0] for tracker in made}
    assert json.loads((config.run.path / "tracker.json").read_text())["id"] == run_id
    assert [tracker.identity[1:] for tracker in (wandb, wandb_again)] == [(0, False), (4, True)]
    assert steps(wandb, "train") + steps(wandb_again, "train") == list(range(1, 13))
    assert steps(wandb, "validation") + steps(wandb_again, "validation") == [0, 3, 6, 9, 12]
    assert steps(board, "train") == list(range(1, 8))
    assert steps(board_again, "train") == list(range(5, 13))  # it forgets what lies behind step 4 by itself
    assert steps(trackio, "train") == list(range(5, 13))  # new in this session


def test_a_run_that_starts_anew_is_a_new_run(recipe, made, monkeypatch):
    config = recipe(*TWELVE, "checkpoint.every=0", "logging.trackers=[wandb]")
    with monkeypatch.context() as patch:
        crash_at(patch, 3)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config)
    pretrain(config)
    assert made[0].identity[0] != made[1].identity[0]
    assert steps(made[1], "train") == list(range(1, 13))


@pytest.mark.parametrize(("call", "from_step"), [("start", 0), ("log", 5), ("finish", 0)])
def test_a_failing_tracker_is_reported_once_and_stops_nothing(recipe, made, capsys, call, from_step):
    made.fails = (call, from_step)
    plain = pretrain(recipe(*TWELVE, "run.name=plain"))
    result = pretrain(recipe(*TWELVE, "logging.trackers=[trackio]"))
    assert len(read_rows(result.metrics)) == len(read_rows(plain.metrics))
    out = capsys.readouterr().out
    assert out.count("tracker trackio: ConnectionError: the network is down. It gets no more of this session") == 1
    # rows before the failing one: validation at 0 and 3, steps 1 to 4
    assert made[0].calls.count(call) == (7 if call == "log" else 1)
    assert steps(made[0], "train") == {"start": [], "log": [1, 2, 3, 4], "finish": list(range(1, 13))}[call]


def test_a_tracker_that_hangs_at_the_end_is_left_behind(recipe, made, capsys, monkeypatch):
    import threading

    forever = threading.Event()
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(Fake, "finish", lambda self: forever.wait(60))
    pretrain(recipe("logging.trackers=[wandb]"))
    forever.set()
    assert "tracker wandb: it could not send everything in 0 seconds" in capsys.readouterr().out


def test_statistics_of_layers_get_names():
    row = {"loss": 1.0, "grad_norm": None, "memory/3.bmru/write_share": 0.5}
    assert trackers._plain(row) == {"loss": 1.0, "memory/3.bmru/write_share": 0.5}


def test_tensorboard_reads_every_step_once_after_a_resume(recipe, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = recipe(*TWELVE, "logging.trackers=[tensorboard]")
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config)
    result = pretrain(config)
    events = reader.EventAccumulator(str(config.run.path / "tensorboard"))
    events.Reload()
    rows = read_rows(result.metrics)
    for tag, wanted in (
        ("train/loss", [r for r in rows if "lr" in r]),
        ("validation/loss", [r for r in rows if "windows" in r]),
    ):
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in wanted
        ]
    assert len(list((config.run.path / "tensorboard").glob("*/hparams.yml"))) == 1
