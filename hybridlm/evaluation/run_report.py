"""`hybridlm report`: runs as one HTML file with pictures in it. It needs no network and no script, and everything that
comes from a file is escaped.

(report.py is the report of a checkpoint that was measured on a text.)
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.evaluation.markup import shown as _text
from hybridlm.evaluation.places import check_out
from hybridlm.evaluation.run_charts import Chart, draw
from hybridlm.evaluation.run_curves import MOST, smoothing_window
from hybridlm.evaluation.run_figures import differences, figures
from hybridlm.evaluation.run_record import Row, RunRecord, read_runs
from hybridlm.files import replace_file

_SAMPLES = 12
"""Samples of a run that are shown: the newest."""


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Draws the runs and writes the report; returns its path.

    runs: folders of runs, or their metrics.jsonl. out None: report.html beside the metrics of the one run. Raises
    UserError for what is no run, a place that cannot be written, or where matplotlib is missing.
    """
    if out is None and len(runs) != 1:
        raise UserError(f"--out: {len(runs)} runs have no common place for their report. Give --out FILE.html.")
    records = read_runs(runs)
    path = check_out(records[0].metrics.with_name("report.html") if out is None else out)
    page = render(records, draw(records))
    try:
        replace_file(path, page)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}). Give another place.") from None
    return path


def render(runs: list[RunRecord], charts: list[Chart]) -> str:
    """The page."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    body = [f"<h1>{_text(title)}</h1>", *(_note(run, note) for run in runs for note in run.notes)]
    body.append(_figures(runs))
    body.append(f'<div class="charts">{"".join(map(_chart, charts))}</div>')
    body.append(f'<p class="fine">{_text(_how_drawn(runs))}</p>')
    if len(runs) > 1:
        body.append(_differences(runs))
    body += [_samples(run) for run in runs if run.samples]
    body += [_settings(run) for run in runs if run.settings]
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(body))


def _how_drawn(runs: list[RunRecord]) -> str:
    most = max(len(run.training) for run in runs)
    text = f"Running means are over the last {smoothing_window(most):,} steps"
    if len({smoothing_window(len(run.training)) for run in runs}) > 1:
        text = "Running means are over a fiftieth of each run's steps (at least 10, at most 1,000)"
    if most > MOST:
        text += (
            f". Runs of more than {MOST:,} steps are drawn in {MOST:,} pieces of equally many: the faint curves show "
            "the smallest and the largest value of each piece, the others its mean"
        )
    return text + (
        ". Throughput over real time counts validation, samples and checkpoints, over whole rounds from validation to "
        "validation; work that was lost to a crash is not in it."
    )


def _figures(runs: list[RunRecord]) -> str:
    tables = [figures(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    if len(runs) > 1:  # means over windows of different lengths share a row
        tables = [{name.partition(", mean of")[0]: text for name, text in table.items()} for table in tables]
        names = dict.fromkeys(name.partition(", mean of")[0] for name in names)
    rows = ([name, *(table.get(name, "–") for table in tables)] for name in names)
    return _table(["", *(run.name for run in runs)] if len(runs) > 1 else None, rows)


def _differences(runs: list[RunRecord]) -> str:
    found = differences(runs)
    known = [run for run in runs if run.settings]
    if len(known) < 2:
        return "<h2>Settings that differ</h2><p>Unknown: fewer than two of the runs have a config.yaml.</p>"
    if not found:
        return "<h2>Settings that differ</h2><p>None.</p>"
    head = ["", *(run.name for run in runs)]
    return "<h2>Settings that differ</h2>" + _table(head, ([name, *values] for name, values in found.items()))


def _settings(run: RunRecord) -> str:
    table = _table(None, ([name, value] for name, value in run.settings.items()))
    return f"<details><summary>Settings of {_text(run.name)}</summary>{table}</details>"


def _samples(run: RunRecord) -> str:
    shown = run.samples[-_SAMPLES:]
    left = f" (the last {len(shown)} of {len(run.samples):,})" if len(run.samples) > len(shown) else ""
    parts = "".join(map(_sample, reversed(shown)))
    return f"<h2>Samples of {_text(run.name)}{_text(left)}</h2>{parts}"


def _sample(row: Row) -> str:
    """A text, with the prompt that it begins with set off."""
    prompt, text = str(row["prompt"]), str(row["text"])
    given = prompt if text.startswith(prompt) else ""
    step = f"<p class='step'>after step {_text(str(row['step']))}</p>"
    return f"{step}<pre><b>{_text(given)}</b>{_text(text[len(given) :])}</pre>"


def _chart(chart: Chart) -> str:
    data = base64.b64encode(chart.png).decode("ascii")
    caption = f"<span>{_text(chart.caption)}</span>" if chart.caption else ""
    image = f'<img alt="{_text(chart.title)}" src="data:image/png;base64,{data}">'
    return f"<figure><figcaption><b>{_text(chart.title)}</b> {caption}</figcaption>{image}</figure>\n"


def _table(head: list[str] | None, rows: Iterable[list[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>" if head is not None else ""
    body = "".join(
        f"<tr><th>{_text(row[0])}</th>" + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table>{top}{body}</table></div>'


def _note(run: RunRecord, note: str) -> str:
    return f'<p class="note">{_text(run.name)}: {_text(note)}</p>'


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto; max-width: 1240px;
       padding: 0 1.2rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .22rem .9rem .22rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { font-weight: 600; } td { overflow-wrap: anywhere; min-width: 7rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1.4rem;
          margin-top: 1.4rem; }
figure { margin: 0; } figcaption span { color: #666; font-size: .88rem; } img { width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: .7rem .9rem; margin: .2rem 0 1rem; }
.step, .fine { color: #666; font-size: .88rem; margin: 0; } .note { background: #fff3cd; padding: .4rem .8rem; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-weight: 600; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
