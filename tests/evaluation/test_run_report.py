"""`hybridlm report`: one file that shows what the metrics say, of runs in any condition."""

import base64
import json
import re
import struct
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from hybridlm.cli import main
from hybridlm.evaluation import run_charts, run_curves, run_report
from hybridlm.evaluation.plots import _pyplot
from hybridlm.evaluation.run_figures import differences, figures
from hybridlm.evaluation.run_record import number, read_runs

EVIL = "<script>alert('x')</script> & \"quoted\" $\\frac$ \ud800\x00"


def training_row(step, steps=30, batch=64, **more):
    row = {"step": step, "loss": 6 / step**0.3, "lr": 1e-3 / step, "epsilon": max(0.0, 1 - step / 10), "grad_norm": 1.0}
    return row | {"tokens": step * batch, "tokens_per_second": 2.0 * batch, "seconds": step * 1.0} | more


def validation_row(step, value, **more):
    return {"step": step, "bits_per_byte": value, "loss": 2.5, "windows": 4, "epsilon": 0.0, "seconds": step} | more


def memory(step, layers=(1, 3)):
    return [
        {
            "layer": layer,
            "cell": "bmru",
            "units": 8,
            "write_share": 0.5 / layer,
            "mean_hold": step * 2.0 if step > 3 else None,
        }
        | {"dead_units": 2, "always_writing_units": 4}
        for layer in layers
    ]


def save(folder, rows, settings=None, samples=(), torn=False):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines) + ('{"step": 99, "lo' if torn else ""), encoding="utf-8")
    if settings is not None:
        (folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    return folder


def usual(steps=30, **more):
    rows = [validation_row(0, 8.0, bits_per_byte_ema=8.0)]
    for step in range(1, steps + 1):
        extra = {"memory": memory(step)} if step % 5 == 0 else {}
        rows.append(training_row(step, steps, z_loss=0.1 * step, mfu=0.3, **extra) | more)
        if step % 10 == 0:
            rows.append(validation_row(step, 8 - step / 10, bits_per_byte_ema=7.9 - step / 10))
    return rows


class Page(HTMLParser):
    """The tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self):
        return [attrs["alt"] for tag, attrs in self.tags if tag == "img"]


ONE = ["Training loss", "Validation", "Throughput", "Learning rate", "Gradient norm", "Epsilon"]
MEMORY = ["Memory units: writes", "Memory units: hold", "Memory units: dead", "Memory units: always writing"]


def test_one_run_with_everything(tmp_path, capsys):
    samples = [{"step": step, "prompt": "The sea", "text": f"The sea was {step}"} for step in range(20)]
    run = save(tmp_path / "my-run", usual(), {"training": {"steps": 60}, "run": {"name": "x"}}, samples, torn=True)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"Written to {run / 'report.html'}\n"
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "samples.jsonl",
    ]
    page = Page(run / "report.html")
    assert page.pictures == [*ONE, "Z-loss", "Model FLOPs utilisation", *MEMORY]
    for words in (
        "my-run",
        "30 of 60",
        "5.0000 bits per byte, step 30",
        "training.steps",
        "The sea was 19",
        "last 12 of 20",
    ):
        assert words in page.text, words
    assert "The sea was 7 " not in page.text


def test_the_file_stands_alone(tmp_path):
    page = Page(run_report.write_report([save(tmp_path / "run", usual())]))
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attrs in page.tags:
        assert not {"href", "onload", "onerror", "style"} & set(attrs)
        if tag == "img":
            png = base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"), validate=True)
            assert png.startswith(b"\x89PNG")
            assert min(struct.unpack(">II", png[16:24])) > 300


def test_what_files_say_is_shown_and_not_obeyed(tmp_path):
    samples = [{"step": EVIL, "prompt": EVIL, "text": EVIL + " and more"}]
    rows = [*(training_row(step) for step in range(1, 5)), validation_row(4, 3.0)]
    one = save(tmp_path / "a <b>&_$x^{", rows, {"run": {EVIL: EVIL}, "training": {"lr": 1}}, samples)
    two = save(tmp_path / "_猫", rows, {"run": {EVIL: "other"}, "training": {"lr": 1}})
    page = Page(run_report.write_report([one, two], tmp_path / "both.html"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert('x')</script> & \"quoted\" $\\frac$ ?\ufffd") >= 5
    assert "a <b>&_$x^{" in page.text
    assert "_猫" in page.text


def test_several_runs_share_the_pictures(tmp_path):
    one = save(tmp_path / "x" / "run", usual(), {"optimizer": {"lr": 0.1}, "training": {"seed": 1}})
    two = save(
        tmp_path / "y" / "run", usual(20), {"optimizer": {"lr": 0.2}, "training": {"seed": 1}, "more": [1, None]}
    )
    page = Page(run_report.write_report([one, two], tmp_path / "both.html"))
    assert page.pictures[:6] == ONE
    assert page.pictures[8:] == [f"{title} — {name}/run" for title in MEMORY for name in ("x", "y")]
    runs = read_runs([one, two])
    assert [run.name for run in runs] == ["x/run", "y/run"]
    assert differences(runs) == {"optimizer.lr": ["0.1", "0.2"], "more": ["not set", "[1, null]"]}
    assert "optimizer.lr 0.1 0.2" in page.text
    figure = run_charts._pyplot().figure()
    axis = figure.subplots()
    lines, over = run_charts._lines(runs, run_charts._pyplot())
    run_charts._loss(axis, lines)
    run_charts._finish(axis, over, len(lines))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["x/run", "y/run"]
    assert over == "step"
    run_charts._pyplot().close(figure)


def test_runs_whose_steps_differ_in_size_are_drawn_over_tokens(tmp_path):
    one = save(tmp_path / "one", [training_row(step) for step in range(1, 11)] + [validation_row(10, 3.0)])
    two = save(tmp_path / "two", [training_row(step, batch=128) for step in range(1, 11)] + [validation_row(10, 3.0)])
    lines, over = run_charts._lines(read_runs([one, two]), _pyplot())
    assert over == "tokens read"
    assert lines[1].x.tolist() == [128.0 * step for step in range(1, 11)]
    assert [line.x_validation.tolist() for line in lines] == [[640.0], [1280.0]]


def test_what_is_drawn_is_what_was_measured(tmp_path):
    rows = [*usual(), training_row(31, grad_norm=None)]
    run = save(tmp_path / "run", rows)
    plt = _pyplot()
    lines, _ = run_charts._lines(read_runs([run]), plt)
    training = [row for row in rows if "lr" in row]

    def drawn(plot):
        figure = plt.figure()
        axis = figure.subplots()
        assert plot(axis, lines)
        plt.close(figure)
        return [line.get_xydata().tolist() for line in axis.lines]

    assert drawn(run_charts._loss)[0] == [[row["step"], row["loss"]] for row in training]
    plain, averaged = drawn(run_charts._validation)
    assert plain == [[0, 8.0], [10, 7.0], [20, 6.0], [30, 5.0]]
    assert averaged == [[0, 8.0], [10, 6.9], [20, 5.9], [30, 4.9]]
    assert drawn(run_charts._column("epsilon", "epsilon"))[0] == [[row["step"], row["epsilon"]] for row in training]
    inside, real = drawn(run_charts._throughput)
    assert {y for _, y in inside} == {128.0}
    assert {y for _, y in real[1:]} == {64.0}  # a step takes half a second of each second
    gradient = drawn(run_charts._gradient)[0]
    assert gradient[0] == [1, 1.0]
    assert np.isnan(gradient[-1][1])
    found = run_charts.memory_series(lines[0].run, "dead_units")
    assert {layer: values.tolist() for layer, (_, values) in found.items()} == {1: [0.25] * 6, 3: [0.25] * 6}
    assert run_charts.memory_series(lines[0].run, "mean_hold")[1][1].tolist() == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def test_the_figures_of_the_table(tmp_path):
    rows = [
        training_row(step, loss=3.0 if step > 5 else 9.0, grad_norm=None if step == 2 else step)
        for step in range(1, 16)
    ]
    rows += [validation_row(5, 4.0), validation_row(10, 2.0), validation_row(15, 2.5)]
    (run,) = read_runs([save(tmp_path / "run", rows)])
    table = figures(run)
    assert table["training loss, mean of the last 3 steps"] == "3.0000 nats per token"
    assert table["validation, last"] == "2.5000 bits per byte, step 15"
    assert table["validation, best"] == "2.0000 bits per byte, step 10"
    assert table["largest gradient norm"] == "15"
    assert table["steps left out (fp16 overflow)"] == "1"
    assert table["tokens read"] == "960"
    assert table["wall time"] == "0:15"
    assert table["throughput up to the last step, pauses included"] == "64 tokens per second"
    assert table["throughput inside the steps, median"] == "128 tokens per second"


def test_a_hundred_thousand_steps_are_thinned_and_no_spike_is_lost(tmp_path):
    rng = np.random.default_rng(0)
    x, y = np.arange(1.0, 100_001.0), rng.normal(3.0, 0.1, 100_000)
    y[[77, 50_123]] = 40.0, np.nan
    curve = run_curves.raw(x, y)
    assert len(curve.x) == 2 * run_curves.MOST
    assert curve.y.max() == 40.0
    assert curve.y.min() == np.nanmin(y)
    assert np.isfinite(curve.y).all()
    mean = run_curves.thinned(x, y)
    assert len(mean.x) == run_curves.MOST
    assert np.nanmean(y) == pytest.approx(mean.y.mean(), abs=1e-3)
    window = run_curves.smoothing_window(len(y))
    smooth = run_curves.trailing_mean(y, window)
    for at in (0, 5, 999, 1000, 50_200, 99_999):
        assert smooth[at] == pytest.approx(np.nanmean(y[max(0, at - window + 1) : at + 1]))
    save(tmp_path / "run", [training_row(step, loss=float(y[step])) for step in range(1, 20_001)])
    page = run_report.write_report([tmp_path / "run"])
    assert page.stat().st_size < 1_000_000
    assert "drawn in 1,500 pieces" in Page(page).text


@pytest.mark.parametrize(
    "rows",
    [
        [validation_row(0, 8.0)],
        [training_row(1)],
        [training_row(step) for step in range(1, 4)],
        [{"step": 1, "loss": 1.0, "grad_norm": 0.5}, {"step": 2, "loss": 1.0, "grad_norm": None}],
        [
            training_row(
                1, loss=float("nan"), grad_norm=float("inf"), lr=10**400, tokens="many", seconds=True, memory="no"
            )
        ],
        [training_row(1, memory=[{"layer": 1}, {"layer": "x", "write_share": 1}, 3]), {"step": 1, "note": "other"}],
        [training_row(step, tokens=64, seconds=1.0) for step in range(1, 4)],
        [training_row(1, grad_norm=0.0, loss=0.0, lr=0.0, epsilon=None)],
    ],
)
def test_rows_that_lack_something_are_drawn_as_far_as_they_go(tmp_path, rows):
    page = Page(run_report.write_report([save(tmp_path / "run", rows)]))
    assert page.pictures
    assert "nan" not in page.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has no row yet"),
        (b'{"step": 1, "lo', "it has no row yet"),
        (b'{"step": 1, "train/loss": 2.0}\n', "none of its 1 rows is of a step or a validation"),
        (b'{"loss": 1, "grad_norm": 2.0}\n', "a row without a step"),
        (b"[1, 2]\n", "is no JSON object (but [1, 2])"),
        (b"hello\n", "is no JSON"),
        (b"\xff\xfe\x00\n", "is no JSON object ('utf-8' codec"),
    ],
)
def test_what_is_no_record_of_a_run(tmp_path, capsys, content, says):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(content)
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_bad_places(tmp_path, capsys):
    run = save(tmp_path / "runs" / "run", usual(5))

    def refused(*argv):
        assert main(["report", *map(str, argv)]) == 2
        return capsys.readouterr().err

    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert f"It holds runs, though: {run}" in refused(tmp_path / "runs")
    assert "it is given twice" in refused(run, run / "metrics.jsonl", "--out", tmp_path / "x.html")
    assert "2 runs have no common place for their report. Give --out FILE.html" in refused(run, run)
    assert "the folder" in refused(run, "--out", tmp_path / "no" / "x.html")
    assert "that is a folder" in refused(run, "--out", tmp_path)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl"]


def test_beside_a_metrics_file(tmp_path):
    run = save(tmp_path / "run", usual(5))
    assert run_report.write_report([run / "metrics.jsonl"]) == run / "report.html"


def test_settings_and_samples_that_cannot_be_read_are_said(tmp_path):
    run = save(tmp_path / "run", usual(5))
    (run / "config.yaml").write_text("{a: [1")
    (run / "samples.jsonl").write_text("nonsense\n")
    text = Page(run_report.write_report([run])).text
    assert "config.yaml cannot be read: while parsing" in text
    assert re.search(r"samples\.jsonl:1 is no JSON", text)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    run = save(tmp_path / "run", usual(5))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run)]) == 2
    assert "'.[plot]'" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_numbers():
    assert number(3) == 3.0
    for value in (None, True, "3", [], 10**400, float("nan")):
        assert np.isnan(number(value))
