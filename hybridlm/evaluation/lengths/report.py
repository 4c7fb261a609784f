"""The facts of `evaluate_lengths` as lines for a terminal, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridlm.evaluation.lengths.labels import short_names, shown


def default_output(checkpoint: str | Path, text_files: list[str], lengths: list[int]) -> Path:
    """CHECKPOINT/evaluation/TEXT-lengths-SHORTEST-LONGEST.json; `+2` behind TEXT where there are two more."""
    more = f"+{len(text_files) - 1}" if len(text_files) > 1 else ""
    name = f"{Path(text_files[0]).stem}{more}-lengths-{lengths[0]}-{lengths[-1]}.json"
    return Path(checkpoint) / "evaluation" / name


def render(facts: dict[str, Any]) -> str:
    """The tables and what they say, a block for each checkpoint, then what holds for all of them."""
    names = short_names([each["checkpoint"] for each in facts["checkpoints"]])
    blocks = [_block(name, each) for name, each in zip(names, facts["checkpoints"], strict=True)]
    if facts["better_than_the_first"]:
        blocks.append(
            _beside(dict(zip([each["checkpoint"] for each in facts["checkpoints"]], names, strict=True)), facts)
        )
    return "\n\n".join([*blocks, _about(facts)])


def _block(name: str, found: dict[str, Any]) -> str:
    rows = [("context", "bits per byte", "better than the one before")]
    gains = {(each["shorter"], each["longer"]): each for each in found["better_than_shorter"]}
    before = None
    for each in found["by_context"]:
        length = each["length"]
        if each["not_possible"] is not None:
            rows.append((shown(length), "not possible", each["not_possible"]))
            continue
        rows.append((shown(length), _number(each), _number(gains[before, length], 5) if before else ""))
        before = length
    positions = [("position", "bits per byte", "")]
    positions += [(f"{each['from']:,}-{each['to']:,}", _number(each), "") for each in found["by_position"]]
    lossless = "" if found["tokenizer_is_lossless"] else ", NOT lossless on this text: bits per byte do not compare"
    trained = "" if found["trained_length"] is None else f", trained on {found['trained_length']:,} tokens"
    lines = [
        f"{name}: {found['pattern'] or 'no pattern'}, {found['parameters']:,} parameters, {found['dtype']} on "
        f"{found['device']}{trained}",
        f"tokenizer of {found['vocab_size']:,} tokens{lossless}; windows start behind {found['start_symbol']}",
    ]
    if found["read_in_pieces"] is False:
        lines.append("its cache cannot be carried over several tokens at once: every window is read in one call")
    tables = [*_table(rows), "", *_table(positions)] if found["by_position"] else _table(rows)
    return "\n".join([*lines, "", *tables, "", found["in_words"]])


def _beside(names: dict[str, str], facts: dict[str, Any]) -> str:
    first = names[facts["checkpoints"][0]["checkpoint"]]
    rows = [("context", "checkpoint", f"better than {first}")]
    for length in facts["lengths"]:
        for each in facts["better_than_the_first"]:
            if each["length"] == length:
                rows.append((shown(length), names[each["checkpoint"]], _number(each, 5)))
    return "\n".join(_table(rows))


def _about(facts: dict[str, Any]) -> str:
    short = facts["texts_too_short"]
    left_out = f"; left out, as shorter than the longest length: {', '.join(short)}" if short else ""
    lines = {
        "text": f"{', '.join(facts['texts'])}: {facts['n_bytes']:,} bytes{left_out}",
        "context": f"{facts['target_bytes']:,} bytes predicted at every length, with half of it to all of it in front",
        "position": "in windows of the longest context that was possible; other positions hold other text",
        "± error": f"standard error over {facts['pieces']} pieces of the text; of differences, piece by piece",
    }
    if not facts["same_tokens"]:
        lines["lengths"] = "in tokens of each checkpoint's own tokenizer; the bytes that are predicted are the same"
    return "\n".join(f"{name:<15}{value}" for name, value in lines.items())


def _number(figures: dict[str, Any], digits: int = 4) -> str:
    if figures["bits_per_byte"] is None:
        return "too little text"
    return f"{figures['bits_per_byte']:z.{digits}f} ± {figures['standard_error']:.{digits}f}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        rest = [word.ljust(width) for word, width in zip(row[1:], widths, strict=True)]
        lines.append("  ".join([row[0].rjust(first), *rest]).rstrip())
    return lines
