"""What a checkpoint was trained on: sources, licences, sizes.

Sizes are those of the data folder, where it is still the one that the run read: its fingerprint is in the checkpoint.
Elsewhere only what the recipe says is said. Nobody but the person who names a source knows its licence: it is the
`license` of a source in the recipe, or of `hybridlm prepare --licenses`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridlm.data.austen import LANGUAGE
from hybridlm.data.mixture import epoch_tokens
from hybridlm.data.prepare import source_weights
from hybridlm.data.shards import MANIFEST, TokenShards, read_manifest
from hybridlm.errors import UserError
from hybridlm.files import expanded
from hybridlm.release.model_card.markdown import code, table
from hybridlm.release.model_card.training import Training

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass
class Data:
    """sources: an entry each, as in a data folder's manifest. epoch_tokens, manifest: None where the folder is not
    known to be the run's."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    fingerprint: str = ""
    epoch_tokens: int | None = None
    manifest: dict[str, Any] | None = None

    @property
    def hub_names(self) -> list[str]:
        """Sources that are data sets of the Hub."""
        return [each["source"] for each in self.sources if _on_hub(each)]

    @property
    def language(self) -> list[str]:
        """Known of the texts that come with the package alone."""
        return [LANGUAGE] if self.sources and all(each.get("kind") == "builtin" for each in self.sources) else []


def read_data(training: Training) -> Data:
    """The data of a run. What is not known is noted in `training.notes`."""
    found = Data(fingerprint=training.state.data_fingerprint)
    if training.recipe is None:
        return found
    section, folder = training.recipe.data.prepare, training.recipe.data.folder
    if section is not None:
        folder, found.weights = section.output, source_weights(section)
        found.sources = [{"source": source.label, **source.origin()} for source in section.sources]
    assert folder is not None, "a recipe has one of both"
    try:
        shards = TokenShards(folder, "train", found.weights or None)
        if shards.fingerprint != found.fingerprint:
            raise UserError(f"data folder {folder}: it is another than the one that this checkpoint was trained on.")
        manifest = read_manifest(expanded(folder))
        _check_entries(manifest)
        found.epoch_tokens = epoch_tokens(shards.lengths, shards.source_edges, shards.weights)
    except UserError as error:
        training.notes.append(f"No sizes of the data: {error}")
        return found
    said = found.sources or [{} for _ in manifest["sources"]]
    found.sources = [
        # What a data set's name meant is known when it is read: a folder that is gone reads like a name on the Hub.
        entry | own | ({"kind": "saved"} if entry.get("kind") == "saved" else {})
        for entry, own in zip(manifest["sources"], said, strict=True)
    ]
    found.weights, found.manifest = shards.weights, manifest
    return found


def _check_entries(manifest: dict[str, Any]) -> None:
    """Raises UserError where a manifest does not say what is told of here."""
    try:
        if len(manifest["sources"]) != len(manifest["weights"]):
            raise ValueError("there are weights without a source")
        for entry in manifest["sources"]:
            counts = [entry["documents"], entry["validation"]["tokens"]]
            counts += [entry["train"][key] for key in ("tokens", "bytes")]
            if not all(type(count) is int for count in counts):
                raise TypeError("a count is no number")
        float((manifest["made_of"].get("validation") or {}).get("share") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"its {MANIFEST} is damaged ({type(error).__name__}: {error})") from None


def sources_table(data: Data) -> str:
    """ "" where no source is known."""
    sized, several = data.manifest is not None, any(weight != 1 for weight in data.weights)
    header = ["source", "licence", *["weight"] * several]
    header += ["documents", "training tokens", "training bytes", "held-out tokens"] if sized else []
    rows = []
    for number, entry in enumerate(data.sources):
        row = [_name(entry), str(entry.get("license") or "not stated")]
        row += [f"{data.weights[number]:g}"] if several else []
        if sized:
            train, held_out = entry["train"], entry["validation"]
            row += [f"{n:,}" for n in (entry["documents"], train["tokens"], train["bytes"], held_out["tokens"])]
        rows.append(row)
    return table(header, rows)


def about(data: Data) -> list[str]:
    """Sentences about how the data were prepared."""
    lines = []
    if data.manifest is not None:
        made_of = data.manifest["made_of"]
        lines = [_tokenizer(made_of, data.manifest["vocab_size"]), _held_out(made_of, data.manifest["sources"])]
        if made_of.get("deduplicate"):
            lines.append("Documents that repeat an earlier one were left out.")
    elif data.sources:
        lines.append("Their sizes are not known: the data folder was not there when this card was made.")
    if data.fingerprint:
        lines.append(f"Fingerprint of the data: {code(data.fingerprint)}.")
    return lines


def _tokenizer(made_of: dict[str, Any], size: int) -> str:
    if str(made_of.get("tokenizer", "")).startswith("bpe-"):
        return f"Tokenizer: byte-level BPE of {size:,} tokens, trained on the training split."
    return f"Tokenizer: {size:,} tokens, one that was there before."


def _held_out(made_of: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    chosen = made_of.get("validation") or {}
    if not chosen.get("share"):
        return "Nothing was held out."
    what = "the end of every document" if chosen.get("by") == "position" else "whole documents, drawn"
    asked = f"{float(chosen['share']):.3g} of the text asked for"
    sizes = [[entry[split].get("bytes") for entry in entries] for split in ("validation", "train")]
    if not all(type(size) is int for split in sizes for size in split) or not sum(map(sum, sizes)):
        return f"Held out for validation: {what}, {asked}."
    held_out, rest = map(sum, sizes)
    return f"Held out for validation: {what}, {held_out / (held_out + rest):.2%} of the bytes ({asked})."


def _name(entry: dict[str, Any]) -> str:
    name = str(entry.get("source", ""))
    if entry.get("kind") == "builtin":
        return f"{code(name)}, texts that come with hybridlm"
    return f"[{code(name)}](https://huggingface.co/datasets/{name})" if _on_hub(entry) else code(name)


def _on_hub(entry: dict[str, Any]) -> bool:
    name = str(entry.get("source", ""))
    return entry.get("kind") == "dataset" and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
