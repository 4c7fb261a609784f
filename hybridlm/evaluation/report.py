"""A checkpoint measured on a text file: the numbers, with what is needed to compare them, as JSON and as lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import evaluate_text, read_file
from hybridlm.evaluation.loading import load_checkpoint, locate
from hybridlm.evaluation.weights import weights_digest
from hybridlm.files import expanded, replace_file, sha256


def evaluate_checkpoint(
    checkpoint: str | Path,
    text_file: str | Path,
    *,
    context: int | None = None,
    batch_size: int | None = None,
    carry_state: bool = False,
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """`evaluate_text` of a checkpoint on a file.

    context None: the length of the training, where the checkpoint tells it, else `max_position_embeddings`.
    Raises UserError for a checkpoint, file or number that cannot be used.
    """
    source = locate(checkpoint)
    text = read_file(text_file)  # before the model is read: it is the quicker check
    model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
    if context is None:
        context = trained_length(source) or int(model.config.max_position_embeddings)
    facts = evaluate_text(model, tokenizer, text, context=context, batch_size=batch_size, carry_state=carry_state)
    told = {"checkpoint": source, "weights": weights_digest(source), "text": str(text_file)}
    return told | {"text_sha256": sha256(expanded(text_file))} | facts


def trained_length(checkpoint: str | Path) -> int | None:
    """Tokens of a training sequence, from the state that a run leaves in its checkpoints; None if there is none."""
    try:
        state = json.loads((Path(checkpoint) / "training_state" / "state.json").read_text(encoding="utf-8"))
        return int(state["settings"]["data.sequence_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def default_output(facts: dict[str, Any]) -> Path:
    """CHECKPOINT/evaluation/TEXT-CONTEXT[-carried].json. Raises UserError where the checkpoint is no local folder."""
    folder = Path(facts["checkpoint"])
    if not folder.is_dir():
        raise UserError(
            f"checkpoint {folder}: it is no local folder, so the numbers have no place beside it. Give --out FILE.json."
        )
    name = f"{Path(facts['text']).stem}-{facts['context']}{'-carried' if facts['carry_state'] else ''}.json"
    return folder / "evaluation" / name


def beside_other_texts(path: Path, facts: dict[str, Any]) -> Path:
    """`path`; where the numbers of other texts with the same name lie there, a place beside it, named by the hash of
    these."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = _hashes(before) == _hashes(facts) or (not _hashes(before) and _names(before) == _names(facts))
    except (OSError, ValueError, AttributeError, RecursionError):
        return path
    return path if same else path.with_name(f"{path.stem}-{'-'.join(each[:8] for each in _hashes(facts))}{path.suffix}")


def _hashes(facts: dict[str, Any]) -> list[str]:
    """Of the texts that numbers are of; empty in files of an older hybridlm."""
    return facts.get("texts_sha256") or [facts[name] for name in ("text_sha256",) if name in facts]


def _names(facts: dict[str, Any]) -> list[str]:
    return facts.get("texts") or [str(facts.get("text"))]


def write_json(path: str | Path, facts: dict[str, Any]) -> Path:
    """Writes `facts` aside, then renames; makes the folder, but none above it. Raises UserError where it cannot."""
    path = expanded(path)
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"output {path}: cannot be written ({error.strerror}). Give --out a path that can be."
        ) from None
    return path


def render(facts: dict[str, Any]) -> str:
    """The numbers as lines for a terminal."""
    way = "carried from window to window" if facts["carry_state"] else "every window begins anew"
    lossless = "" if facts["tokenizer_is_lossless"] else ", NOT lossless on this text: bits per byte do not compare"
    model = facts["pattern"] or facts["checkpoint"]
    lines = {
        "bits per byte": f"{facts['bits_per_byte']:.4f}",
        "perplexity": f"{facts['perplexity_per_token']:.3f} per token",
        "text": f"{facts['text']}: {facts['n_bytes']:,} bytes, {facts['n_tokens']:,} tokens",
        "context": f"{facts['context']:,} tokens; {way}",
        "tokenizer": f"{facts['vocab_size']:,} tokens{lossless}",
        "symbols": f"the text starts behind {facts['start_symbol']}; the end symbol is not counted",
        "model": f"{model}, {facts['parameters']:,} parameters, {facts['dtype']} on {facts['device']}",
    }
    return "\n".join(f"{name:<15}{value}" for name, value in lines.items())
