"""The facts of a certificate as lines for a terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hybridlm.evaluation.certificate.certify import LATCHES

_LETTERS = 6
"""Letters that are named behind one word."""


def render(facts: dict[str, Any]) -> str:
    """Verdict, what it rests on, the automaton where it is small, and the latches."""
    lines = [f"{facts['task']}, {facts['pattern']}: {_verdict(facts)}", ""]
    least = "at least " if facts["heads"] else ""
    rows = {
        "reached": f"{_reached(facts)}, {facts['steps']:,} steps, in float64; {_own(facts)}",
        "margins": f"answers {least}{_number(facts['margin_of_answers'])}, "
        f"decisions {_number(facts['margin_of_decisions'])}",
        "automaton": _automaton(facts),
    }
    lines += [f"{name:<12}{value}" for name, value in rows.items()]
    if facts.get("table"):
        lines += ["", "state that follows / answer:", facts["table"]]
    if facts["latches"]:
        lines += ["", *_latches(facts["latches"], facts["closed"])]
    return "\n".join(lines)


def default_output(facts: dict[str, Any]) -> Path:
    """CHECKPOINT/evaluation/certificate-TASK.json."""
    return Path(facts["checkpoint"]) / "evaluation" / f"certificate-{facts['task']}.json"


def _verdict(facts: dict[str, Any]) -> str:
    if facts["verdict"] == "correct":
        return f"correct at every length (in {' and '.join(facts['holds_in'])})"
    if facts["verdict"] == "wrong":
        word = " ".join(map(str, facts["word"]))
        said, own = facts["said"], facts["said_in_own_dtype"]
        also = "" if own == said else f" in float64 and {own} in {facts['dtype']}"
        return (
            f"wrong. The shortest word on which it fails has length {len(facts['word'])}:\n  {word}\n"
            f"  it says {said}{also}, right is {facts['right']}"
        )
    return f"open. No wrong answer on any word up to length {facts['all_words_to']}; not certain: {facts['why']}"


def _reached(facts: dict[str, Any]) -> str:
    pairs = f"{facts['pairs']:,} pairs with states of the task"
    if facts["heads"]:
        return f"{facts['heads']} heads, each by itself, in {pairs}"
    return f"{facts['states']:,} states of the model, {pairs}"


def _own(facts: dict[str, Any]) -> str:
    differing, dtype = facts["differing"], facts["dtype"]
    if facts["heads"]:
        return (
            "however sums are rounded"
            if dtype in facts["holds_in"]
            else f"in {dtype} some moves or answers are too close to be sure of"
        )
    return f"{differing:,} of them otherwise in {facts['dtype']}" if differing else f"all the same in {facts['dtype']}"


def _automaton(facts: dict[str, Any]) -> str:
    own = facts["automaton"]
    if own is None:
        return f"not seen whole; the task's has {facts['states_of_task']} states"
    size = len(own["following"])
    if facts["same_automaton"]:
        return f"{size} states when those that answer alike are one: the task's own"
    return f"{size} states when those that answer alike are one; the task's has {facts['states_of_task']}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _latches(units: list[dict[str, Any]], closed: bool) -> list[str]:
    kinds = Counter(unit["kind"] for unit in units)
    so_far = "" if closed else ", in the steps that were taken"
    lines = ["units       " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) + so_far]
    latches = [unit for unit in units if unit["kind"] == "latch"]
    # Those first that letters decide alone, whatever went before.
    latches.sort(key=lambda unit: sum(0 < share < 1 for word in ("set", "reset") for share in unit[word].values()))
    for unit in latches[:LATCHES]:
        what = "; ".join(f"{word} by {_letters(unit[word])}" for word in ("set", "reset") if unit[word])
        lines.append(f"  {unit['unit']:<8}{what}; held by {_letters(unit['hold'])}")
    if len(latches) > LATCHES:
        lines.append(f"  and {len(latches) - LATCHES} more latches, which the JSON file has")
    return lines


def _letters(shares: dict[str, float]) -> str:
    """ "1, 3 (25 %)": letter 1 always, letter 3 in a quarter of the states."""
    named = [letter if share == 1 else f"{letter} ({_percent(share)})" for letter, share in shares.items()]
    return ", ".join(named[:_LETTERS]) + (f", {len(named) - _LETTERS} more" if len(named) > _LETTERS else "")


def _percent(share: float) -> str:
    return "<1 %" if share < 0.01 else f"{min(99, round(100 * share))} %"
