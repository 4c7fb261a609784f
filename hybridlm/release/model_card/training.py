"""How a checkpoint was trained, from its own state and the run around it.

Of a run only what is in the checkpoint counts: rows of metrics.jsonl up to its step, sessions whose work it holds. A
record without the row of that step, or with other settings, is another run's, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from hybridlm.errors import UserError
from hybridlm.evaluation.loading import HUB_NAME
from hybridlm.evaluation.run_figures import figures
from hybridlm.evaluation.run_record import RunRecord, number, read_runs
from hybridlm.release.model_card.markdown import block, code, table
from hybridlm.training.checkpoints import STATE, written_weights
from hybridlm.training.config import load_config
from hybridlm.training.initial import is_local
from hybridlm.training.progress import clock
from hybridlm.training.resume import frozen_settings
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.sessions import sessions
from hybridlm.training.state import TrainingState, read_state

_FIGURES = ("training loss", "validation", "throughput", "model FLOPs")
"""Beginnings of the names of a report's figures that a card shows."""


_KINDS: dict[str, Any] = {
    "data.sequence_length": int,
    "training.batch_size": int,
    "training.init_from": str,
    "optimizer.lr": (int, float),
}
"""Settings that are calculated with, or looked up."""


@dataclass
class Training:
    """What is known of it. record, recipe: None where the run has none that can be read."""

    checkpoint: Path
    run: Path
    state: TrainingState
    record: RunRecord | None = None
    recipe: PretrainConfig | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, for the person who makes the card."""
    averaged: bool = False
    """Whether the checkpoint holds the averaged weights, also in a copy under another name."""

    def setting(self, name: str) -> Any:
        """One of the settings that decide a run's numbers, by its dotted name; None where it is not known."""
        value = self.state.settings.get(name)
        return value if isinstance(value, _KINDS.get(name, object)) else None

    def validation(self) -> dict[str, Any] | None:
        """The row of the validation that is this checkpoint's; None where it was not validated."""
        rows = [] if self.record is None else self.record.validation
        return next((row for row in reversed(rows) if row["step"] == self.state.step), None)


class OtherWeightsError(Exception):
    """The weights of a checkpoint are not those that its run wrote."""


def read_training(checkpoint: Path, weights: dict[str, str]) -> Training | None:
    """None where `checkpoint` was not written by a run. weights: of `weight_files`.

    Raises OtherWeightsError where they are not those that the run wrote, such as after a fine-tuning that was saved
    into the same folder; UserError where its state, or the run's record, is damaged.
    """
    folder = checkpoint.resolve()
    if not (folder / STATE / "state.json").is_file():
        return None
    if written_weights(folder) != weights:
        raise OtherWeightsError
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    try:
        found = Training(folder, run, read_state(folder))
    except UserError as error:
        raise UserError(
            f"checkpoint {checkpoint}: its {STATE}/state.json is damaged. Copy it again, or move {STATE} elsewhere for "
            "a card that says nothing of the training."
        ) from error
    found.averaged = weights == written_weights(run / "final-ema")
    found.record = _record(found)
    found.recipe = _recipe(found)
    found.sessions = sessions(run, found.state.step) if found.recipe is not None else []
    return found


def _record(found: Training) -> RunRecord | None:
    step, path = found.state.step, found.run / "metrics.jsonl"
    if not path.is_file():
        found.notes.append(f"{path} is not there: no curves, no losses, no validation")
        return None
    record = read_runs([found.run])[0]
    own = any(row["step"] == step and row.get("tokens") == found.state.tokens for row in record.training)
    if step and not own:
        found.notes.append(f"{path} has no row of step {step:,} with {found.state.tokens:,} tokens: it is left out")
        return None
    record.training = [row for row in record.training if row["step"] <= step]
    record.validation = [row for row in record.validation if row["step"] <= step]
    return record


def _recipe(found: Training) -> PretrainConfig | None:
    """The run's recipe, where it is the one that the checkpoint was trained by."""
    path = found.run / "config.yaml"
    if not path.is_file():
        found.notes.append(f"{path} is not there: neither data, command nor hardware is known")
        return None
    try:
        recipe = load_config(path)
    except UserError as error:
        found.notes.append(f"{path} cannot be used: {' '.join(str(error).split())[:300]}")
        return None
    frozen = frozen_settings(recipe)
    differing = [name for name, value in found.state.settings.items() if frozen.get(name, value) != value]
    if differing:
        found.notes.append(f"{path} is of another run ({', '.join(differing[:3])} differ): it is left out")
        return None
    return recipe


def base_model(found: Training) -> str | None:
    """The model of the Hub whose weights it began with. A folder that is gone reads like a name there, so what counts
    is what this machine once had from the Hub."""
    name = found.setting("training.init_from")
    if not isinstance(name, str) or is_local(name) or not HUB_NAME.fullmatch(name):
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def progress(found: Training, epoch_tokens: int | None) -> str:
    """The table of what was trained. epoch_tokens: those of one pass over the data; None where that is not known."""
    state = found.state
    epochs = f", {state.tokens / epoch_tokens:.2f} epochs" if epoch_tokens else ""
    rows = {
        "steps": f"{state.step:,} of {state.total_steps:,}{', ended early' if state.stopped_early else ''}",
        "tokens read": f"{state.tokens:,}{epochs}; start and end symbols included",
        "batch": _batch(found),
        "optimizer": _optimizer(found),
        "precision": precision(found),
        "seed": str(found.setting("training.seed")) if found.setting("training.seed") is not None else "",
        "began with": beginning(found) or "random weights",
        "wall time": f"{clock(state.seconds)}, validation and checkpoints included{_breaks(found)}",
        **_figures(found),
        **_machines(found),
    }
    return table(None, ([name, value] for name, value in rows.items() if value))


def precision(found: Training) -> str:
    """In what the products were; "" where it is not known."""
    mixed = found.setting("training.mixed_precision")
    return "" if mixed is None else "fp32" if mixed == "no" else f"{mixed} products, fp32 weights and recurrences"


def commands(found: Training) -> str:
    """The lines that started the sessions, each once; "" where none is known."""
    lines = list(dict.fromkeys(row["command"] for row in found.sessions if isinstance(row.get("command"), str)))
    return block(lines) if lines else ""


def recipe_text(found: Training) -> str:
    """config.yaml, fenced; "" where it could not be read."""
    if found.recipe is None:
        return ""
    return block([(found.run / "config.yaml").read_text(encoding="utf-8")], "yaml")


def losses(found: Training) -> str:
    """Every validation up to the checkpoint, as a table."""
    rows = [] if found.record is None else found.record.validation
    averaged = any("bits_per_byte_ema" in row for row in rows)
    header = ["step", "bits per byte", *["averaged weights"] * averaged, "nats per token"]
    names = ("bits_per_byte", *["bits_per_byte_ema"] * averaged, "loss")
    every = -(-len(rows) // 20)
    shown = [row for at, row in enumerate(rows, 1) if at in (1, len(rows)) or at % every == 0]
    return table(header, ([f"{row['step']:,}", *(_digits(row.get(name)) for name in names)] for row in shown))


def _digits(value: Any) -> str:
    return "" if number(value) != number(value) else f"{value:.4f}"


def _batch(found: Training) -> str:
    rows, length = found.setting("training.batch_size"), found.setting("data.sequence_length")
    return f"{rows:,} sequences of {length:,} tokens" if rows and length else ""


def _optimizer(found: Training) -> str:
    kind, lr = found.setting("optimizer.kind"), found.setting("optimizer.lr")
    if kind is None or lr is None:
        return ""
    name = "Muon for the hidden matrices, AdamW for the rest" if kind == "muon" else "AdamW"
    schedule = found.setting("schedule.kind")
    return f"{name}, peak learning rate {lr:g}" + (f", {schedule} schedule" if schedule else "")


def beginning(found: Training) -> str:
    """The weights that the run began with; "" for random ones."""
    weights = found.setting("training.init_from")
    return f"the weights of {code(weights)}" if weights else ""


def _figures(found: Training) -> dict[str, str]:
    if found.record is None or not found.record.training:
        return {}
    return {name: text for name, text in figures(found.record).items() if name.startswith(_FIGURES)}


def _machines(found: Training) -> dict[str, str]:
    """Hardware and software, each once for all sessions that shared them."""
    rows = found.sessions
    names = ("hybridlm", "torch", "transformers", "triton", "python")
    software = [", ".join(f"{name} {row[name]}" for name in names if row.get(name)) for row in rows]
    commits = [f"{code(row['commit'])}{_changed(str(row['commit']))}" for row in rows if row.get("commit")]
    return {
        "hardware": _each(_hardware(row) for row in rows),
        "software": _each(software),
        "commit of hybridlm": _each(commits),
    }


def _breaks(found: Training) -> str:
    """Where the run was taken up again."""
    later = [f"{row['step']:,}" for row in found.sessions if row["step"] > 0]
    return f"; taken up again at step {', '.join(later)}" if later else ""


def _changed(commit: str) -> str:
    return ", with changes that are not in it" if commit.endswith("+") else ""


def processes_of(row: dict[str, Any]) -> int:
    """Those of a session."""
    found = row.get("processes")
    return found if isinstance(found, int) else 1


def _hardware(row: dict[str, Any]) -> str:
    device, processes, threads = row.get("device"), processes_of(row), row.get("threads")
    if not device:
        return ""
    if row.get("kind") != "cpu":
        return f"{processes} × {device}" if processes > 1 else str(device)
    each = f"{threads} thread{'s' if threads != 1 else ''}{' each' if processes > 1 else ''}" if threads else ""
    many = f"{processes} processes" if processes > 1 else ""
    return ", ".join(part for part in (str(device), many, each) if part)


def _each(texts: Any) -> str:
    return "; then ".join(dict.fromkeys(text for text in texts if text))
