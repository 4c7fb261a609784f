"""A checkpoint and a task: the automaton of the one beside that of the other, as numbers and as lines."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

import hybridlm
from hybridlm import HybridLMConfig, HybridLMForTokenClassification
from hybridlm.errors import UserError, did_you_mean
from hybridlm.evaluation.certificate.decisions import HOLD, RESET, SET, WATCHED, Decisions, Latches, watching
from hybridlm.evaluation.certificate.exploring import SHAKE, Exploration, explore, true_machine
from hybridlm.evaluation.certificate.heads import is_sum_of, prove, take_apart
from hybridlm.evaluation.certificate.machine import Machine
from hybridlm.evaluation.certificate.stepping import Stepper
from hybridlm.evaluation.loading import load_weights, locate, read_config
from hybridlm.evaluation.memory.formal import Automaton
from hybridlm.evaluation.memory.kept import RECORD
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.weights import weights_digest
from hybridlm.model.mixers_hybridlm import ATTENTION, MIXERS

LIMIT = 100_000
"""States of the model, or pairs with states of the task, up to which is looked."""
CLEAR = 1e-9
"""A decision with a smaller margin is too close to call: a thousand times `SHAKE`, for numbers of about 1."""
ROUNDING = 1e-13
"""States that count as one may differ by so much, beside the largest number in a window; else they are not one for
certain."""
TRIED = 300, 8
"""Length and number of the words on which a forward is tried."""
LARGEST_TABLE = 16
"""States and letters of an automaton that is printed."""
LATCHES = 12
"""Units that are printed."""


def certify_checkpoint(checkpoint: str | Path, *, task: str | None = None, limit: int = LIMIT) -> dict[str, Any]:
    """What a model that labels letters does on every word, in float64; and how many of the steps that this took come
    out otherwise in the dtype that it was saved in (`differing`).

    checkpoint: a `HybridLMForTokenClassification` whose tokens are the letters of the task, as `memory-suite --keep`
    writes. task: of the suite's automata; None: the one that the checkpoint was trained on. Raises UserError for what
    cannot be compared.

    A layer of finite-state heads alone, without convolution and MLP, is looked at head by head first (`heads` of them):
    that shows more, namely that no rounding matters, in float64 and, where `holds_in` names it, in the dtype that the
    model was saved in. What it does not show to be correct, and every other model, is followed from state to state.

    `run` is the one of the suite that made a local checkpoint (its task, form, mixer, seed and what was changed), or
    None; `weights` a hash of its weights.

    `verdict` is "correct" (at every length), "wrong" (with the shortest `word`, what is `said` and what is `right`; and
    `said_in_own_dtype`, which may be right) or "open" (with `why`). `all_words_to`: the length up to which all words
    are right.
    """
    if limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, a number of states.")
    source = locate(checkpoint)
    name = task_of(source) if task is None else task.lower()
    automaton = _automaton(name)
    model = _load(checkpoint, source, name, automaton)
    found = {"checkpoint": source, "task": name, "pattern": model.config.pattern, "limit": limit}
    found |= {"run": _run_of(source), "weights": weights_digest(source)}
    found["dtype"] = _name(model.dtype)
    facts = _proved(model, automaton)
    if facts is None:
        try:
            facts = _explored(model, automaton, limit)
        except FloatingPointError as error:
            raise UserError(f"checkpoint {checkpoint}: {error}. Give one that was trained to the end.") from None
    versions = {module.__name__: module.__version__ for module in (hybridlm, torch, transformers)}
    return {**found, **facts, "versions": versions}


def _proved(model: PreTrainedModel, task: Automaton) -> dict[str, Any] | None:
    """Where the heads of the model, looked at one by one, show that it is correct."""
    wide = copy.deepcopy(model).double().eval()  # pyright: ignore[reportArgumentType]
    heads = take_apart(wide, model.dtype)
    if heads is None or not heads.finite or not is_sum_of(wide, heads):
        return None
    proof, holds_in = prove(heads, task), [_name(model.dtype)]
    if proof is None:
        heads = take_apart(wide)
        proof, holds_in = (prove(heads, task) if heads else None), []
    if heads is None or proof is None:
        return None
    counts = {"states": None, "pairs": proof.pairs, "steps": proof.steps, "heads": heads.count, "closed": True}
    return {
        "verdict": "correct",
        "why": None,
        "holds_in": list(dict.fromkeys(["float64", *holds_in])),
        "margin_of_answers": _finite(proof.answers),
        "margin_of_decisions": _finite(proof.decisions),
        **counts,
        "spread": None,
        "differing": None,
        "all_words_to": None,
        **_automata(true_machine(task), task),
        "latches": [],
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _explored(model: PreTrainedModel, task: Automaton, limit: int) -> dict[str, Any]:
    """By following every word. Raises FloatingPointError where the model's numbers are none."""
    stepper, own = Stepper(model), Stepper(model, model.dtype)
    shaken = () if _unknown(model) else (Stepper(model, shake=SHAKE), Stepper(model, shake=-SHAKE))
    with watching(stepper, task.inputs) as decisions:
        seen = explore(stepper, task, limit, own, shaken)
    return {
        **_verdict(stepper, own, seen, decisions, task, limit),
        **_automata(seen.machine, task),
        "latches": [row for latches in decisions.latches for row in _units(latches)],
    }


def task_of(source: str) -> str:
    """The task that a checkpoint says it was trained on. Raises UserError where it does not, or is no local folder."""
    if not Path(source).is_dir():
        raise UserError(
            f"checkpoint {source}: it is no local folder, so what it was trained on is not known. Give --task, one of "
            f"{', '.join(automata())}; and --out FILE.json."
        )
    try:
        return _read_record(source)["task"].lower()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"checkpoint {source}: it does not say what it was trained on ({RECORD}). Give --task, one of "
            f"{', '.join(automata())}."
        ) from None


def _run_of(source: str) -> dict[str, Any] | None:
    try:
        record = _read_record(source)
        return {name: record[name] for name in ("task", "form", "mixer", "seed", "changed")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_record(source: str) -> dict[str, Any]:
    return json.loads((Path(source) / RECORD).read_text(encoding="utf-8"))


def automata() -> list[str]:
    """The tasks of the suite that are finite automata."""
    return [name for name, make in TASKS.items() if isinstance(make(True), Automaton)]


def _automaton(name: str) -> Automaton:
    if name not in automata():
        hint = did_you_mean(name, automata())
        raise UserError(f"task={name!r}: no automaton of the suite{hint or '.'} There are {', '.join(automata())}.")
    made = TASKS[name](True)
    assert isinstance(made, Automaton)
    return made


def _load(checkpoint: str | Path, source: str, name: str, task: Automaton) -> PreTrainedModel:
    """The model on the CPU. Raises UserError where it is not one for the task."""
    config = read_config(source, f"checkpoint {checkpoint}")
    wanted = HybridLMForTokenClassification.__name__
    if not isinstance(config, HybridLMConfig) or (config.architectures or [wanted]) != [wanted]:
        kind = config.architectures if isinstance(config, HybridLMConfig) else config.model_type
        kind = kind if isinstance(kind, str) else ", ".join(map(str, kind)) if isinstance(kind, list) else kind
        raise UserError(
            f"checkpoint {checkpoint}: a {kind}. An automaton is read out of a {wanted}, which labels every letter; "
            "`hybridlm memory-suite --keep` trains and writes such models."
        )
    for what, has, asks in (
        ("tokens", config.vocab_size, task.inputs),
        ("labels", config.num_labels, task.outputs),
    ):
        if has != asks:
            raise UserError(
                f"task={name!r}: has {asks} {what}, and checkpoint {checkpoint} has {has}. Give the task that it was "
                "trained on; without --task it is read from the folder."
            )
    for layer, mixer in enumerate(config.block_types):
        if mixer in ATTENTION:
            raise UserError(
                f"checkpoint {checkpoint}: layer {layer} is {mixer}, whose keys and values are no finite state. "
                "Give a model of recurrent layers alone."
            )
    return load_weights(checkpoint, source, HybridLMForTokenClassification)


def _verdict(
    stepper: Stepper, own: Stepper, seen: Exploration, decisions: Decisions, task: Automaton, limit: int
) -> dict[str, Any]:
    margins = {"margin_of_answers": _finite(seen.margin), "margin_of_decisions": _finite(decisions.margin)}
    counts = {"states": seen.states, "pairs": seen.pairs, "steps": seen.steps, "heads": None, "closed": seen.closed}
    common = {**margins, **counts, "spread": seen.spread, "differing": seen.differing, "all_words_to": seen.longest}
    failure, margin = seen.failure, min(decisions.margin, seen.margin)
    if failure is not None:
        common["all_words_to"] = len(failure.word) - 1
    if failure is not None and stepper.answer(failure.word) != failure.right:
        said = {"said": stepper.answer(failure.word), "said_in_own_dtype": own.answer(failure.word)}
        return {"verdict": "wrong", "word": failure.word, **said, "right": failure.right, **common}
    why = None
    unknown = _unknown(stepper.model)
    if failure is not None:
        why = f"steps and one forward answer otherwise on {' '.join(map(str, failure.word))}, by rounding"
    elif unknown:
        why = unknown
    elif not seen.closed:
        why = f"states, or pairs with those of the task, are more than {limit:,}; a larger --limit looks further"
    elif margin < CLEAR:
        why = f"a decision is too close to call (margin {margin:.1g})"
    elif seen.spread > ROUNDING:
        why = f"states that count as one differ by {seen.spread:.1g}, which is more than rounding"
    elif seen.unsure:
        why = f"{seen.unsure:,} steps come out otherwise where numbers are off by {SHAKE:.0e} of their size"
    elif not _forward_is_right(stepper, task):
        why = "one forward over long words answers otherwise than the steps"
    if why is None:
        return {"verdict": "correct", "why": None, "holds_in": ["float64"], **common}
    return {"verdict": "open", "why": why, **common}


def _forward_is_right(stepper: Stepper, task: Automaton) -> bool:
    """Whether the model, which answers step by step as it should, does so in one forward over each of a few words."""
    words = task.of_length(*TRIED, torch.Generator().manual_seed(0))
    return torch.equal(stepper.answers(words.inputs), words.targets)


def _unknown(model: Any) -> str:
    """The layers of which a proof knows too little, and why, as words."""
    mixers: list[str] = model.config.block_types
    layers = [(f"layer {i} ({kind})", kind) for i, mixer in enumerate(mixers) for kind in mixer.split("+")]
    infinite = [name for name, kind in layers if not getattr(MIXERS[kind], "finite", False)]
    if infinite:
        return f"{', '.join(infinite)}: numbers that need not recur"
    others = [name for name, kind in layers if MIXERS[kind] not in WATCHED]  # one derived may decide otherwise
    return f"{', '.join(others)}: how clearly it decides is not known" if others else ""


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _automata(machine: Machine | None, task: Automaton) -> dict[str, Any]:
    """The smallest automaton of the model, where all of it is known, and whether it is the task's."""
    true = true_machine(task)
    found: dict[str, Any] = {"states_of_task": true.states, "automaton": None, "same_automaton": None}
    if machine is not None:
        own = machine.smallest()
        found["automaton"] = {"following": own.following.tolist(), "answers": own.answers.tolist()}
        found["same_automaton"] = own.same_as(true)
        found["table"] = own.table() if max(own.following.shape) <= LARGEST_TABLE else None
    return found


def _units(latches: Latches) -> Iterable[dict[str, Any]]:
    """What sets, resets and holds each unit: letter -> share of the states of the model in which it does."""
    counts = latches.counts
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for place, name in enumerate(latches.units.names):
        kind = _kind(counts[:, :, place].sum(0), latches.held[:, :, place])
        row: dict[str, Any] = {"unit": name, "cell": latches.units.kind, "kind": kind}
        for action, word in ((SET, "set"), (RESET, "reset"), (HOLD, "hold")):
            row[word] = {str(i): float(f"{s:.4g}") for i, s in enumerate(shares[:, action, place]) if s > 0}
        yield row


def _kind(totals: np.ndarray, held: np.ndarray) -> str:
    """Of a unit's numbers of sets, resets and holds; held (letters, 2): holds of either value."""
    if not totals[SET] and not totals[RESET]:
        return "never written"
    if not totals[HOLD]:
        return "always written"
    if not totals[SET] or not totals[RESET]:
        return "written one way"
    # Where each letter holds one value only, writing that value in place of each hold would do the same.
    return "latch" if (held > 0).all(1).any() else "held one way"
