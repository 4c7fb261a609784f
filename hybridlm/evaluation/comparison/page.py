"""The records of a study as Markdown, with a picture by context where matplotlib is installed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridlm.evaluation.comparison.jobs import Record, best_rate, counted, final_records, record_of, searched
from hybridlm.evaluation.comparison.running import tests_of
from hybridlm.evaluation.comparison.study import Study
from hybridlm.evaluation.lengths.labels import shown
from hybridlm.evaluation.plots import _pyplot, _save
from hybridlm.files import replace_file

_MARKERS = "osD^vP*X"


def write_page(study: Study, records: Sequence[Record], page: Path, picture: Path | None) -> Path:
    """Writes the page, and the picture if a path for it is given; returns the page's path."""
    records = counted(study, records)
    found = finals(study, records)
    if picture is not None and any(tests_of(record) for rows in found.values() for record in rows):
        draw(study, found, picture)
        head = f"\n![bits per byte by context]({picture.name})\n"
    else:
        head = ""
    replace_file(page, "\n".join([f"# {study.path.stem}", "", *_about(study, records), head, *_tables(study, records)]))
    return page


def finals(study: Study, records: Sequence[Record]) -> dict[str, list[Record]]:
    """Model -> the records of its final runs by now, in the order of the seeds; failed ones are left out."""
    return {
        model: [record for record in final_records(study, model, records) if not record.get("failed")]
        for model in study.models
    }


def summary(study: Study, records: Sequence[Record]) -> str:
    """The main table as plain lines."""
    return "\n".join(_finals(study, records))


def _about(study: Study, records: Sequence[Record]) -> Iterator[str]:
    rate, *more = study.rates
    rates = (
        f"a learning rate is searched for each alike ({_fields(study.search)}), and the search goes on where the best "
        "one is at an end of it"
        if more
        else f"all have the learning rate {rate:g}"
    )
    yield (
        f"Written by `hybridlm compare {study.path.name}` from records of {len(records)} runs. All models are trained "
        f"by `{study.recipe.name}`, with the fields of `{study.path.name}` for each; {rates}. "
        f"The runs that count have {_fields(study.final)}."
    )
    versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in records})
    if versions:
        yield f"\nVersions: {'; '.join(versions)}."
    data = Counter(record["data"][:16] for record in records if "data" in record)
    if data:
        yield f"\nFingerprint of the data: {', '.join(data)}."
    if len(data) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in data.items())
        yield f"\n**The data was not the same for all runs ({counts}): they do not compare.**"


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in fields.items()) or "the recipe's length"


def _tables(study: Study, records: Sequence[Record]) -> Iterator[str]:
    found = finals(study, records)
    yield "## Final runs\n"
    yield from _finals(study, records)
    first = next((rows[0] for rows in found.values() if rows), None)
    if first is not None:
        tests = _about_tests(first["test"]) if "test" in first else ""
        yield (
            "\nBits per byte, mean over the seeds ± half of what lies between the highest and the lowest (one seed: "
            f"no ±). Validation: {first['validation_bytes']:,} bytes of the sources, in sequences of the training "
            f"length{tests}. Tokens a second are medians, of training over its steps, of generation over what "
            f"`generate` writes for one sequence{_behind(found)}, beside other runs on the same machine."
        )
        yield from _positions(found)
    if len(study.rates) > 1:
        yield "\n## The search for the learning rate\n"
        yield from _search(study, records)
        yield "\nBits per byte of the validation, first seed; the best one in bold."
    ends = [model for model in study.models if _is_an_end(study, model, records)]
    if ends:
        yield f"\nA better rate may lie beyond the best one, the lowest or highest that was tried: {', '.join(ends)}."
    failed = [record for record in records if record.get("failed")]
    if failed:
        yield "\n## Failures\n"
        yield from (f"- {r['stage']} {r['model']}, lr {r['rate']:g}, seed {r['seed']}: {r['failed']}." for r in failed)
    yield "\n## Commands\n"
    commands = [record["command"] for rows in found.values() for record in rows[:1]]
    yield from (f"- `{command}`" for command in commands)
    yield (
        "\nOne for each model; other seeds by `training.seed`; RUNS is a folder of yours for the runs. Tests: "
        "`hybridlm evaluate --lengths` of the `final`.\n"
    )


def _about_tests(test: dict[str, Any]) -> str:
    names = ", ".join(test["texts"])
    return f". Test: {names}; in every context the same {test['n_bytes']:,} bytes are predicted"


def _behind(found: dict[str, list[Record]]) -> str:
    """Where generation was measured."""
    places = {record["generation"]["position"] for rows in found.values() for record in rows if "generation" in record}
    return f" behind {', '.join(f'{place:,}' for place in sorted(places))} tokens" if places else ""


def _is_an_end(study: Study, model: str, records: Sequence[Record]) -> bool:
    rates, best = [job.rate for job in searched(study, model, records)], best_rate(study, model, records)
    return bool(rates) and best in (rates[0], rates[-1])


def _positions(found: dict[str, list[Record]]) -> Iterator[str]:
    """Bits per byte by position, the mean over seeds, where the tests have them."""
    by_place: dict[tuple[int, int], dict[str, list[float | None]]] = {}
    for model, records in found.items():
        for row in (row for record in records for row in record.get("test", {}).get("by_position", [])):
            models = by_place.setdefault((row["from"], row["to"]), {})
            models.setdefault(model, []).append(row["bits_per_byte"])
    if not by_place:
        return
    yield (
        "\nBy position in the longest context, the state carried from its first token on. Other positions hold other "
        "text, so that models compare within a column alone:\n"
    )
    head = ["model", *(f"{start:,} to {end:,}" for start, end in by_place)]
    yield from _grid(head, ([f"`{model}`", *(_mean(at.get(model)) for at in by_place.values())] for model in found))


def _mean(values: list[float | None] | None) -> str:
    numbers = [value for value in values or [] if value is not None]
    return f"{statistics.fmean(numbers):.4f}" if numbers else ""


def _finals(study: Study, every: Sequence[Record]) -> Iterator[str]:
    found = finals(study, every)
    lengths = list(study.lengths) if any("test" in r for rows in found.values() for r in rows) else []
    head = ["model", "parameters", "lr", "seeds", "validation", *(f"test, {shown(at)}" for at in lengths)]
    head += ["training, tokens/s", "generation, tokens/s", "state, bytes"]
    rows = []
    for model, records in found.items():
        lost = sum(bool(record.get("failed")) for record in final_records(study, model, every))
        seeds = f"{len(records)}, {lost} failed" if lost else str(len(records))
        if not records:
            rows.append([f"`{model}`", "", "", seeds if lost else "", *[""] * (len(head) - 4)])
            continue
        one = records[0]
        tests = [_spread(_values(records, at)) for at in lengths]
        state = f"{one['cache_bytes']:,}" + (
            f" + {one['cache_bytes_per_token']:,} a token" if one["cache_bytes_per_token"] else ""
        )
        paces = [_pace(record["tokens_per_second"] for record in records)]
        paces.append(_pace(record["generation"]["tokens_per_second"] for record in records if "generation" in record))
        figures = [f"{one['parameters']:,}", f"{one['rate']:g}", seeds]
        rows.append([f"`{model}`", *figures, _spread([r["bits_per_byte"] for r in records]), *tests, *paces, state])
    yield from _grid(head, rows)


def _pace(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.0f}" if known else ""


def _values(records: Iterable[Record], length: int) -> list[float]:
    return [row["bits_per_byte"] for record in records for row in tests_of(record) if row["length"] == length]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    half = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{half}"


def _search(study: Study, records: Sequence[Record]) -> Iterator[str]:
    by_model = {model: searched(study, model, records) for model in study.models}
    rates = sorted({job.rate for jobs in by_model.values() for job in jobs})
    rows = []
    for model, jobs in by_model.items():
        best = best_rate(study, model, records)
        cells = {job.rate: _cell(record_of(job, records), job.rate == best) for job in jobs}
        rows.append([f"`{model}`", *(cells.get(rate, "") for rate in rates)])
    yield from _grid(["model", *(f"{rate:g}" for rate in rates)], rows)


def _cell(record: Record | None, best: bool) -> str:
    if record is None:
        return ""
    text = "failed" if record.get("failed") else f"{record['bits_per_byte']:.4f}"
    return f"**{text}**" if best else text


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def draw(study: Study, found: dict[str, list[Record]], out: Path) -> None:
    """By context, the mean over seeds of each model, with the range of the seeds. Raises NoMatplotlibError."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 5.5), dpi=120, layout="constrained")
    try:
        for at, (model, records) in enumerate(found.items()):
            points = {length: _values(records, length) for length in study.lengths}
            points = {length: values for length, values in points.items() if values}
            if points:
                _line(axis, at, model, points)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(study.lengths), [shown(length) for length in study.lengths])
        axis.set_xlabel("context, tokens")
        axis.set_ylabel("bits per byte of the test texts")
        axis.grid(alpha=0.25)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
        _save(figure, out)
    finally:
        plt.close(figure)


def _line(axis: Any, at: int, model: str, points: dict[int, list[float]]) -> None:
    means = [statistics.fmean(values) for values in points.values()]
    below = [mean - min(values) for mean, values in zip(means, points.values(), strict=True)]
    above = [max(values) - mean for mean, values in zip(means, points.values(), strict=True)]
    style = "-" if at < 10 else "--"
    axis.errorbar(
        list(points), means, yerr=[below, above], label=model, color=f"C{at % 10}", marker=_MARKERS[at % len(_MARKERS)],
        linestyle=style, markersize=5, linewidth=1.3, capsize=2,
    )  # fmt: skip
