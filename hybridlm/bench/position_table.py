"""A record of `position_report` as lines for a terminal."""

from __future__ import annotations

from typing import Any

from hybridlm.bench.position_report import BUILT, CHECKPOINT, PEER

WAYS = ("step", "generate")


def table(entry: dict[str, Any]) -> str:
    """The models, a line for every row, and what the figures mean."""
    lines = [f"{name:<12}{_words(facts)}" for name, facts in entry["models"].items()]
    memory = "GPU MiB" if any("device_bytes" in row for row in entry["rows"]) else "resident MiB"
    lines += [
        "",
        f"{'position':>10}  {'model':<12}{'state bytes':>14}{'step ms':>10}{'90 %':>10}{memory:>14}{'peak':>8}",
    ]
    lines[-1] += f"{'generate ms':>13}{'90 %':>10}{'peak':>8}"
    lines += [_line(row) for row in entry["rows"]]
    return "\n".join([*lines, "", *_notes(entry)])


def _line(row: dict[str, Any]) -> str:
    start = f"{row['position']:>10,}  {row['model']:<12}"
    if "problem" in row:
        return f"{start}  {row['problem']}"
    step, step_90, word, word_90 = (row[f"{way}_seconds{part}"] * 1e3 for way in WAYS for part in ("", "_90"))
    held, peak, generate_peak = (_mib(row[name]) for name in memory_fields(row))
    return (
        f"{start}{row['state_bytes']:>14,}{step:>10.2f}{step_90:>10.2f}{held:>14}{peak:>8}"
        f"{word:>13.2f}{word_90:>10.2f}{generate_peak:>8}"
    )


def memory_fields(row: dict[str, Any]) -> tuple[str, str, str]:
    """Of a row: memory in use, its peak in the steps and in `generate`; of the device where that has its own, else of
    the process."""
    kind = "device" if "device_bytes" in row else "resident"
    return f"{kind}_bytes", f"peak_{kind}_bytes", f"generate_peak_{kind}_bytes"


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.0f}"


def _words(facts: dict[str, Any]) -> str:
    words = f"{facts['pattern'] or facts['class']}: {facts['parameters']:,} parameters, {facts['layers']} layers of "
    words += f"{facts['hidden_size']}, {facts['vocab_size']:,} tokens of vocabulary"
    words += ", random weights" if facts["weights"] == "random" else ""
    if "dtype" in facts:
        words += f"; {facts['dtype']} on {facts['device']}; {_mib(facts['resident_before_bytes'])} MiB resident before"
    return words


def _notes(entry: dict[str, Any]) -> list[str]:
    settings = entry["settings"]
    lines = [
        f"position: tokens in the cache. Up to {settings['steps']} single steps are timed there in each of two ways: "
        "median and 90th percentile.",
        "step: a call of the model with its cache. generate: a token in `generate`, with what transformers does around "
        "a step; models of other packages copy the places of all tokens there.",
        "state: the cache's tensors, with a layer's count of tokens. Memory: behind the steps, and the peak in them; "
        "last, the peak in `generate`.",
        f"What lies before a position was read {settings['chunk']:,} tokens at a time, which leaves the same state.",
        f"limit of a cache: {settings['state_limit_bytes'] / 2**30:.3g} GiB, {settings['state_limit']}.",
    ]
    filled = {row["model"]: row for row in entry["rows"] if row.get("tokens_filled")}
    for name, row in filled.items():
        lines.append(
            f"{name}: {row['tokens_read']:,} tokens were read; the other keys and values are random numbers, since "
            "reading took too long. Time and memory do not depend on them."
        )
    if BUILT in entry["models"]:
        ratio = entry["models"][BUILT]["parameters"] / entry["models"][CHECKPOINT]["parameters"] - 1
        lines.append(
            f"{BUILT}: made for this comparison, with {ratio:+.1%} of the checkpoint's parameters. Time and memory do "
            "not depend on its weights' values; its attention sees all tokens."
        )
    for name, facts in entry["models"].items():
        beyond = [row for row in entry["rows"] if row["model"] == name and "problem" not in row]
        if name == PEER and facts["made_for"] and any(row["position"] > facts["made_for"] for row in beyond):
            lines.append(
                f"{name}: made for {facts['made_for']:,} positions. Its RoPE goes on beyond; what it writes there "
                "means nothing, and takes as long."
            )
    return lines + ([] if entry["finished"] else ["Not finished: these are the rows that there are."])
