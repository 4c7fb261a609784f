"""The loss curve: a picture with what the metrics say, or one message."""

import json
import sys

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation import plots


def rows(epsilon=True, steps=30):
    for step in range(1, steps + 1):
        value = max(0.0, 1 - step / 10) if epsilon else None
        yield {"step": step, "loss": 6 / step**0.3, "lr": 1e-3, "epsilon": value, "grad_norm": 1.0, "tokens": step}
    yield {"step": steps, "bits_per_byte": 2.345, "loss": 2.5, "n_bytes": 10, "n_tokens": 5, "epsilon": 0.0}


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def test_a_picture_is_written_and_nothing_else(metrics, tmp_path):
    out = plots.loss_curve(metrics, tmp_path / "pictures" / "loss.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.parent.iterdir()] == ["loss.png"]


@pytest.mark.parametrize("epsilon", [True, False])
def test_what_is_drawn_is_what_was_measured(epsilon):
    plt = plots._pyplot()
    figure, axis = plt.subplots()
    every = list(rows(epsilon))
    plots._draw(axis, every[:-1], every[-1:])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["training, each step"] == [[row["step"], row["loss"]] for row in every[:-1]]
    assert drawn["validation"] == [[30, 2.5]]
    assert any("2.345 bits per byte" in note.get_text() for note in axis.texts)
    names = [note.get_text() for note in axis.get_legend().get_texts()]
    assert ("epsilon (right axis)" in names) is epsilon
    assert len(figure.axes) == 1 + epsilon
    plt.close(figure)


def test_a_running_mean_of_a_constant_is_the_constant():
    assert plots._running_mean([3.0] * 5) == pytest.approx([3.0] * 5)


def test_missing_metrics_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        plots.loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no training step"):
        plots.loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_without_matplotlib_the_extra_is_named(metrics, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"'\.\[plot\]'"):
        plots.loss_curve(metrics, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
