"""`hybridlm inspect`: a checkpoint over a text file, as a page, or as a comparison with a change of its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import facts_of, read_file
from hybridlm.evaluation.inspector.alignment import align
from hybridlm.evaluation.inspector.continuation import Writing, compare
from hybridlm.evaluation.inspector.figures import unit_figures
from hybridlm.evaluation.inspector.interventions import Freezes
from hybridlm.evaluation.inspector.page import render_page
from hybridlm.evaluation.inspector.recording import record
from hybridlm.evaluation.inspector.spans import token_spans
from hybridlm.evaluation.inspector.units import CellUnits, locate_units, memory_units
from hybridlm.evaluation.loading import load_checkpoint, locate
from hybridlm.evaluation.places import check_beside, check_out
from hybridlm.evaluation.reading import Progress
from hybridlm.files import replace_file

TOKENS = 10_000
"""What is read of a text, unless it is said."""


def inspect_checkpoint(
    checkpoint: str | Path,
    text_file: str | Path,
    *,
    tokens: int = TOKENS,
    out: str | Path | None = None,
    unit: str | None = None,
    token: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs a checkpoint over the beginning of a UTF-8 text and writes the page; returns the facts, with its place.

    tokens: how many at most, start symbol included. out None: CHECKPOINT/evaluation/TEXT-inspector.html. unit, token:
    what a link to the page with `fragment`, which is among the facts, shows first; None: the page's own choice. Raises
    UserError for a checkpoint, file, place, unit or number that cannot be used.
    """
    _check_tokens(tokens)
    source = locate(checkpoint)
    if out is None:
        check_beside(source, "pictures", ".html")
    path = default_output(source, text_file, "inspector.html") if out is None else check_out(out)
    model, tokenizer, text = _loaded(checkpoint, text_file, dtype, device)
    spans = token_spans(tokenizer, text, tokens)
    fragment = _fragment(memory_units(model), unit, token, len(spans.ids))
    recording = record(model, spans.ids, progress=progress)
    figures, alignments = unit_figures(recording), align(recording, spans)
    names = recording.names
    facts = {"checkpoint": source, "text": str(text_file), "tokens": recording.tokens, "units": len(figures)}
    facts |= {kind: sum(each.kind == kind for each in figures) for kind in ("dead", "always")}
    facts["write_share"] = sum(each.write_share for each in figures) / len(figures)
    facts["features"] = [
        {
            "name": each.feature.name,
            "series": each.feature.series,
            "best": [{"unit": names[unit], "r": float(each.r[unit])} for unit in each.best],
            "chance": each.chance,
            "p": each.p,
        }
        for each in alignments
    ]
    facts |= facts_of(model, tokenizer)
    page = render_page(
        f"Memory units over {Path(text_file).name}", _lines(facts), recording, spans, figures, alignments
    )
    write_file(path, page)
    return facts | {"out": str(path), "fragment": fragment}


def _fragment(cells: Sequence[CellUnits], unit: str | None, token: int | None, tokens: int) -> str:
    """What stands behind the # of a link that shows a unit and a token."""
    chosen = []
    if unit is not None:
        found = locate_units(cells, unit)
        if len(found) > 1:
            raise UserError(f"unit {unit}: these are {len(found)}. Give one, such as {found[0][0].names[0]}.")
        cell, place = found[0]
        chosen.append(f"unit={cell.names[place]}")
    if token is not None:
        if not 0 <= token < tokens:
            raise UserError(f"token={token}: the page has the tokens 0 to {tokens - 1}. Give one of them.")
        chosen.append(f"token={token}")
    return "&".join(chosen)


def compare_checkpoint(
    checkpoint: str | Path,
    text_file: str | Path,
    *,
    flips: Sequence[str] = (),
    freezes: Freezes | None = None,
    at: int | None = None,
    tokens: int = TOKENS,
    writing: Writing | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """What a change of units does to the continuation of a text; see `continuation.compare`. The facts as plain data.

    at: the token in front of which the units are changed, and behind which the continuation begins, 0 the start symbol;
    None: the last of `tokens`. Raises UserError for a checkpoint, file, unit or number that cannot be used.
    """
    _check_tokens(tokens)
    if at is not None and at < 0:
        raise UserError(f"at={at}: must be at least 0, the start symbol.")
    limit = tokens if at is None else at + 1
    model, tokenizer, text = _loaded(checkpoint, text_file, dtype, device)
    spans = token_spans(tokenizer, text, limit)
    if at is not None and len(spans.ids) <= at:
        raise UserError(f"at={at}: the text has the tokens 0 to {len(spans.ids) - 1}. Give one of them.")
    writing = writing or Writing()
    found = compare(model, spans.ids, flips=flips, freezes=freezes, writing=writing)
    changed = {"flips": list(flips), "freezes": dict(freezes or {})}
    place = {"at": len(spans.ids) - 1, "before": spans.text[-200:]}
    rows = [
        {"token": _word(tokenizer, token), "kl": kl, "units_differ": count}
        for token, kl, count in zip(found.plain, found.kl, found.units_differ, strict=True)
    ]
    texts = {"plain": _words(tokenizer, found.plain), "changed": _words(tokenizer, found.changed)}
    choice = {"temperature": writing.temperature, "seed": writing.seed}
    source = {"checkpoint": locate(checkpoint), "text": str(text_file)}
    return (
        source | changed | place | choice | texts | {"units": found.units, "steps": rows} | facts_of(model, tokenizer)
    )


def default_output(source: str, text_file: str | Path, name: str) -> Path:
    """CHECKPOINT/evaluation/TEXT-NAME."""
    return Path(source) / "evaluation" / f"{Path(text_file).stem}-{name}"


def write_file(path: Path, content: str) -> None:
    """Writes aside, then renames; makes the folder, but none above it. Raises UserError where it cannot."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}). Give another place.") from None


def render_inspection(facts: dict[str, Any]) -> str:
    """The facts of `inspect_checkpoint` as lines for a terminal."""
    best = []
    for each in facts["features"]:
        first, luck = each["best"][0], "" if each["chance"] is None else f" (chance: {each['chance']:.3f})"
        best.append(f"  {each['name']:<24}{first['unit']:<10}{first['r']:+.3f}{luck}")
    heading = ["", "Unit most aligned with, and r:", *best] if best else []
    return "\n".join([*_lines(facts), _tally(facts), *heading])


def render_comparison(facts: dict[str, Any]) -> str:
    """The facts of `compare_checkpoint` as lines for a terminal."""
    frozen = [name if value is None else f"{name}={value:+g}" for name, value in facts["freezes"].items()]
    what = [f"{verb} {', '.join(units)}" for verb, units in (("flipped", facts["flips"]), ("frozen", frozen)) if units]
    lines = [
        f"Changed: {'; '.join(what)}, in front of token {facts['at']:,}",
        f"Text:    ...{facts['before']!r}",
        "",
        f"Without the change: {facts['plain']!r}",
        f"With the change:    {facts['changed']!r}",
        "",
        f"At each token of the continuation without the change, KL of the two distributions in nats, and how many of "
        f"{facts['units']:,} states differ:",
    ]
    lines += [f"{row['kl']:>10.2e} {row['units_differ']:>8,}   {row['token']!r}" for row in facts["steps"]]
    return "\n".join(lines)


def _lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"Text: {facts['text']}, {facts['tokens']:,} tokens from its beginning, start symbol {facts['start_symbol']!r} "
        "included.",
        f"Model: {facts['checkpoint']}, {facts['pattern']}, {facts['parameters']:,} parameters, {facts['dtype']} on "
        f"{facts['device']}.",
    ]


def _tally(facts: dict[str, Any]) -> str:
    return (
        f"Memory units: {facts['units']:,}, {facts['dead']:,} dead, {facts['always']:,} always-writing; the mean unit "
        f"writes at {facts['write_share']:.1%} of the tokens."
    )


def _loaded(
    checkpoint: str | Path, text_file: str | Path, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    text = read_file(text_file)  # before the model is read: it is the quicker check
    model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
    memory_units(model)  # refuses a model without any
    return model, tokenizer, text


def _check_tokens(tokens: int) -> None:
    if tokens < 2:
        raise UserError(f"tokens={tokens}: must be at least 2, the start symbol and a token of the text.")


def _word(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _words(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
