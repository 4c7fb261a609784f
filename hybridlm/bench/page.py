"""The results as a section of a page: between `<!-- performance -->` and `<!-- /performance -->`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridlm.bench.kernels import place
from hybridlm.bench.operations import DIRECTIONS, OPERATIONS
from hybridlm.bench.paths import forced_in
from hybridlm.bench.peers import FAMILIES, OURS
from hybridlm.bench.plots import draw
from hybridlm.bench.results import KINDS, load
from hybridlm.errors import UserError
from hybridlm.evaluation.between import check_between, write_between

BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
_WORDS = {"kernels": "the scans by themselves", "training": "training", "generation": "generation"}


def write(page: str | Path, folder: str | Path) -> None:
    """Draws the pictures anew and puts the section between the markers of a page. Raises UserError where there are no
    results, or not one of each marker; nothing is drawn then."""
    check_between(page, BEGIN, END)
    entries = read(folder)
    for path, entry in entries.items():
        draw(entry, path.with_suffix(".png"))
    write_between(page, section(entries, Path(page).parent), BEGIN, END)


def read(folder: str | Path) -> dict[Path, dict[str, Any]]:
    """The records of a folder, those of a kind together. Raises UserError where there are none, or one is of a quick
    run."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"results {folder}: is a file. Give the folder that the results lie in.")
    entries = {path: load(path) for path in sorted(Path(folder).glob("*.json"))}
    if not entries:
        raise UserError(f"results {folder}: there are none. Run scripts/bench_kernels.py, and the other two, first.")
    for path, entry in entries.items():
        if entry["settings"]["quick"]:
            raise UserError(f"results {path}: of a --quick run, whose figures mean nothing. Take it out of the folder.")
        if entry.get("unfinished"):
            raise UserError(f"results {path}: of a run that did not come to its end. Measure again, or take it out.")
    return dict(sorted(entries.items(), key=lambda item: KINDS.index(item[1]["kind"])))


def section(entries: dict[Path, dict[str, Any]], folder: Path = Path()) -> str:
    """Markdown; pictures are named relative to `folder`, where they exist."""
    lines = [_standing(entries)]
    parts = {"training": _training, "generation": _generation, "kernels": _kernels}
    for kind, part in parts.items():
        for path, entry in entries.items():
            if entry["kind"] == kind:
                lines += ["", *part(entry), "", _provenance(entry)]
                picture = path.with_suffix(".png")
                if picture.is_file():
                    lines += ["", f"![{_WORDS[kind]}]({Path(os.path.relpath(picture, folder or '.')).as_posix()})"]
    return "\n".join(lines)


def _standing(entries: dict[Path, dict[str, Any]]) -> str:
    """Which figures there are, and which not yet."""
    there = {(entry["kind"], entry["machine"]["kind"]) for entry in entries.values()}
    places = {"cpu": "on a CPU", "cuda": "on a GPU"}
    command = "python scripts/bench_report.py --write docs/performance.md"
    sentences = [f"Every figure here is measured, and put here by `{command}`."]
    for kind_of_device, words in places.items():
        missing = [_WORDS[kind] for kind in KINDS if (kind, kind_of_device) not in there]
        if missing:
            sentences.append(f"**Not measured yet {words}: {', '.join(missing)}.**")
    return " ".join(sentences)


def _provenance(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    threads = f", {machine['threads']} of {machine['cores']} cores" if machine["kind"] == "cpu" else ""
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    triton = f", triton {machine['triton']}" if machine["kind"] == "cuda" and machine["triton"] else ""
    return (
        f"`{entry['settings']['command']}` on {machine['device']}{threads}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}{triton}{commit}, {machine['date']}."
    )


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in body:
        yield "| " + " | ".join(row) + " |"


def _label(name: str) -> str:
    return f"**hybridlm `{name}`**" if name in OURS else name


def _models(entry: dict[str, Any]) -> list[str]:
    there = {row["model"] for row in entry["rows"]}
    return [name for name in FAMILIES if name in there]


def _training(entry: dict[str, Any]) -> list[str]:
    lengths = list(dict.fromkeys(row["length"] for row in entry["rows"]))
    conditions = f"{_allocator(entry)}{forced_in(entry)}"
    lines = [
        "Training, tokens per second (in brackets: the share of the ceiling, at which the 6 x parameters operations of "
        "a token alone would take time, at the rate of matrix products measured beside it). A cell without a number "
        "was not run. "
        f"{_sizes(entry)}, at least {entry['settings']['tokens']:,} tokens a step{conditions}:"
    ]
    notes: list[str] = []
    for precision in dict.fromkeys(row["precision"] for row in entry["rows"]):
        rows = {(r["model"], r["length"]): r for r in entry["rows"] if r["precision"] == precision}

        def cell(name: str, length: int, rows: dict[Any, Any] = rows) -> str:
            row = rows.get((name, length))
            if row is None or "problem" in row:
                return "" if row is None else _note(notes, row["problem"])
            return f"{row['tokens_per_second']:,.0f} ({row['share_of_ceiling']:.2f})"

        head = [f"{precision}, T =", *(f"{length:,}" for length in lengths)]
        lines += ["", *_grid(head, [[_label(n), *(cell(n, t) for t in lengths)] for n in _models(entry)])]
    return [*lines, *_notes(notes)]


def _generation(entry: dict[str, Any]) -> list[str]:
    positions = list(dict.fromkeys(row["position"] for row in entry["rows"]))
    rows = {(row["model"], row["position"]): row for row in entry["rows"]}
    notes: list[str] = []

    def cell(name: str, position: int) -> str:
        row = rows[name, position]
        if "problem" in row:
            return _note(notes, row["problem"])
        memory = "?" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:,.0f}"
        return f"{row['tokens_per_second']:,.0f} / {row['generate_tokens_per_second']:,.0f} / {memory}"

    def overhead(name: str) -> str:
        row = rows[name, positions[0]]
        return "" if "problem" in row else f"{row['overhead_microseconds_per_layer']:,.0f} µs"

    threads = "one core" if entry["machine"]["threads"] == 1 else f"{entry['machine']['threads']} threads"
    where = threads if entry["machine"]["kind"] == "cpu" else "one GPU"
    lines = [
        f"Greedy generation on {where}: tokens per second in a bare loop / in `generate` / MiB of memory beyond Python "
        "and its libraries; last, what a layer adds to its matrix products at the first position (the time of a token "
        "less that of its products by themselves, by the number of layers: they share what embedding and head add). "
        f"{_sizes(entry)}, fp32{forced_in(entry)}:",
        "",
    ]
    head = ["tokens behind", *(f"{position:,}" for position in positions), "a layer"]
    body = [[_label(n), *(cell(n, p) for p in positions), overhead(n)] for n in _models(entry)]
    return [*lines, *_grid(head, body), *_notes(notes)]


def _kernels(entry: dict[str, Any]) -> list[str]:
    """The fastest path of each operation, direction and shape."""
    fast = "triton" if entry["machine"]["kind"] == "cuda" else "cpu"
    path = fast if any(row["way"] == fast for row in entry["rows"]) else "torch"
    rows = {(r["operation"], r["direction"], tuple(r["shape"])): r for r in entry["rows"] if r["way"] == path}
    shapes = list(dict.fromkeys(key[2] for key in rows))

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        inside = "\\*" if row["past_cache"] is False else ""
        return f"{row['of_copy']:.2f}{inside}, {row['times_pure']:.1f}×"

    lines = [
        f"The scans by themselves, path `{path}`, {entry['settings']['dtype']}: the share of the bandwidth of a copy "
        "between tensors far past the cache, timed in the same rounds, counting only bytes that no implementation can "
        "do without (it can pass 1: processors fetch a line before they write it, which is not counted, and a copy "
        "writes a larger part of its bytes than a scan; \\*: the scan's data fits into the cache), and how many times "
        "as fast as the best form in pure PyTorch (the package's own path `torch`, or a textbook form: doubling, "
        "associative). Each was right before it was "
        f"timed{_allocator(entry)}:",
        "",
    ]
    head = ["(B, T, N)", *("×".join(map(str, shape)) for shape in shapes)]
    body = [
        [f"{name}, {direction}", *(cell(rows.get((name, direction, shape))) for shape in shapes)]
        for name in OPERATIONS
        for direction in DIRECTIONS
    ]
    wrong = [f"- Wrong, and not timed: {place(found)}: {found['why']}." for found in entry["refused"]]
    return [*lines, *_grid(head, body), *([""] if wrong else []), *wrong]


def _allocator(entry: dict[str, Any]) -> str:
    kept = entry["machine"]["kind"] == "cpu" and entry["settings"].get("allocator") == "kept"
    return "; freed memory is kept, as in `hybridlm pretrain`" if kept else ""


def _sizes(entry: dict[str, Any]) -> str:
    counts = [size["parameters"] for size in entry["sizes"]]
    vocabulary = f"{entry['sizes'][0]['vocabulary']:,} tokens of vocabulary"
    shapes = ", ".join(f"{size['family']} {size['layers']} × {size['width']}" for size in entry["sizes"])
    words = f"{min(counts) / 1e6:.2f} to {max(counts) / 1e6:.2f} million parameters, {vocabulary}"
    return f"{words} (layers × width: {shapes})"


def _note(notes: list[str], text: str) -> str:
    """A dash with a number; the text comes below the table."""
    if text not in notes:
        notes.append(text)
    return f"– <sup>{notes.index(text) + 1}</sup>"


def _notes(notes: list[str]) -> list[str]:
    return [""] * bool(notes) + [f"{number}. {note}" for number, note in enumerate(notes, 1)]
