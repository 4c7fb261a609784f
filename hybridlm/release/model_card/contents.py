"""What a card says: all that is known of a checkpoint, gathered and put into template.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import hybridlm
from hybridlm.data.tokenizer import load_tokenizer, start_and_end
from hybridlm.errors import UserError
from hybridlm.evaluation.info import describe
from hybridlm.evaluation.origin import Origin, read_origin
from hybridlm.evaluation.weights import digest_of, weight_files
from hybridlm.release import card
from hybridlm.release.export import AUTO_CLASSES, Source, has_tokenizer, is_export
from hybridlm.release.model_card import evaluation, sources, training
from hybridlm.release.model_card.limits import limits
from hybridlm.release.model_card.markdown import block, code, table
from hybridlm.release.model_card.memory import memory_section, mixers_of, repeated
from hybridlm.release.model_card.rights import bibtex, patent_notice
from hybridlm.training.sections import RunConfig

NO_RUN = "Not known: the checkpoint does not lie in the folder of a run."
OTHER_WEIGHTS = "Not known: the weights are not those that the run wrote."
"""What stands in a card in place of its training."""


@dataclass
class CardOptions:
    """What the files do not say, and the person who makes the card does. None and empty: not said."""

    name: str | None = None
    """What `from_pretrained` is given in the example, such as OWNER/MODEL; its last part is the title."""
    license: str | None = None
    """Of the weights, as the Hub names licences."""
    language: list[str] = field(default_factory=list)
    """Of the texts, as ISO 639 codes."""
    memory: str | Path | None = None
    """A folder of records of the memory suite."""
    benchmarks: list[str] = field(default_factory=list)
    """Results for the Hub's benchmarks (benchmarks.py)."""


class Contents:
    """What is known of a checkpoint, and the card made of it. Raises UserError for files that are damaged, and a folder
    of records that is none."""

    def __init__(self, source: Source, options: CardOptions):
        self.source, self.folder, self.options = source, source.folder, options
        self.facts = facts = describe(source.folder)
        self.notes: list[str] = []
        weights, self.no_run = weight_files(source.folder), NO_RUN
        try:
            self.training = training.read_training(self.folder, weights)
        except training.OtherWeightsError:
            self.training, self.no_run = None, OTHER_WEIGHTS
            self.notes.append(
                f"{self.folder} holds other weights than its run wrote (training_state/checksums.json), which its "
                "training, data and losses say nothing of: they are left out"
            )
        self.origin = read_origin(self.folder)
        if self.origin is not None and self.training is None:
            self.no_run = _converted(self.origin)
        self.data, self.measured = sources.Data(), []
        if self.training is not None:
            self.data = sources.read_data(self.training)
            self.measured = evaluation.validation(self.training, _start_symbol(self.folder))
        self.weights = digest_of(weights)
        model = evaluation.Model(facts["pattern"], facts["parameters"], self.weights)
        self.measured += evaluation.measurements(self.folder, source.name, model, self.notes)
        self.mixers = mixers_of(facts["layers"])
        self.memory = "" if options.memory is None else memory_section(options.memory, facts["layers"])
        if options.memory is not None and not self.memory:
            self.notes.append(f"{options.memory} holds no record of {', '.join(self.mixers)}")
        self.notes += [] if self.training is None else self.training.notes

    @property
    def language(self) -> list[str]:
        return self.options.language or self.data.language

    @property
    def title(self) -> str:
        if self.options.name is not None:
            return card.title_of(self.options.name)
        if self.source.on_hub:
            return card.title_of(self.source.name)
        folder = self.folder.resolve().name
        if self.training is None or self.training.recipe is None:
            return folder
        place = self.training.recipe.run
        run = place.name if place.folder == RunConfig.folder else f"{Path(place.folder).name}/{place.name}"
        return run if folder == "final" else f"{run}, {folder}"

    def render(self, picture: str | None) -> str:
        """The text, sealed. picture: its name, beside the card."""
        template = (resources.files("hybridlm.release.model_card") / "template.md").read_text(encoding="utf-8")
        made = str(ModelCard.from_template(self._metadata(), template_str=template, **self._words(picture)))
        return card.sealed(re.sub(r"\n{3,}", "\n\n", made).rstrip() + "\n")

    def _metadata(self) -> ModelCardData:
        task = card.TASKS[AUTO_CLASSES[self.source.architecture]]
        results = evaluation.model_index(self.measured, task)
        return ModelCardData(
            language=self.language or None,
            license=self.options.license,
            library_name="transformers",
            pipeline_tag=task,
            tags=["hybridlm", *self.mixers],
            datasets=self.data.hub_names or None,
            base_model=self._base_model(),
            eval_results=results or None,
            model_name=self.title if results else None,
        )

    def _base_model(self) -> str | None:
        """The model of the Hub that this one was made of."""
        if self.origin is not None:
            return self.origin.source if self.origin.on_hub else None
        return None if self.training is None else training.base_model(self.training)

    def _words(self, picture: str | None) -> dict[str, Any]:
        """What the template asks for."""
        found, data = self.training, self.data
        lines = evaluation.evaluation_commands(self.measured)
        notice = self.options.license
        return {
            "seal": card.open_seal("card"),
            "weights": "\n\n".join(filter(None, [card.mark(self.weights), card.mark_name(self.options.name)])),
            "opening": card.OPENING,
            "closing": card.CLOSING,
            "top": self._top(),
            "architecture": _architecture(self.source.architecture, self.facts),
            "trained": found is not None,
            "no_run": self.no_run,
            "sources": sources.sources_table(data),
            "about_data": sources.about(data),
            "fingerprint": code(data.fingerprint) if data.fingerprint else "",
            "began": "" if found is None else training.beginning(found),
            "progress": "" if found is None else training.progress(found, data.epoch_tokens),
            "commands": "" if found is None else training.commands(found),
            "launched": found is not None and any(training.processes_of(row) > 1 for row in found.sessions),
            "recipe": "" if found is None else training.recipe_text(found),
            "picture": picture,
            "no_curves": _no_curves(found),
            "losses": "" if found is None else training.losses(found),
            "evaluation": evaluation.evaluation_table(self.measured),
            "evaluation_commands": block(lines) if lines else "",
            "memory": self.memory,
            "no_memory": _no_memory(self.facts["layers"]),
            "limits": limits(self.facts, found, self.language, bool(self.measured)),
            "licence": f"Licence of the weights: {code(notice)}." if notice else _unlicensed(self.origin),
            "patents": patent_notice(self.mixers),
            "citation": block([bibtex(self.mixers)], "bibtex"),
            "origin": f"Made by `hybridlm card` of hybridlm {hybridlm.__version__} from the checkpoint's own files.",
        }

    def _top(self) -> str:
        return card.card_top(
            self.options.name or self.source.name,
            auto_class=AUTO_CLASSES[self.source.architecture],
            architecture=self.source.architecture,
            pattern=self.facts["pattern"],
            parameters=self.facts["parameters"],
            tokenizer=has_tokenizer(self.folder),
            code=is_export(self.folder) if self.source.on_hub else (self.folder / "modeling_hybridlm.py").is_file(),
            title=self.title,
        )


def _converted(origin: Origin) -> str:
    link = f"[{code(origin.source)}](https://huggingface.co/{origin.source})" if origin.on_hub else code(origin.source)
    return f"Converted by `hybridlm convert` from {link}: what that was trained on, and how, is said by its own card."


def _unlicensed(origin: Origin | None) -> str:
    if origin is None:
        return "No licence of the weights is stated."
    return f"No licence of the weights is stated here: they are those of {code(origin.source)}, under its licence."


def _no_curves(found: training.Training | None) -> str:
    if found is None or found.record is None:
        return "Not on record here: there is no `metrics.jsonl` of the run."
    return "The run was not validated, and the picture of its losses was not drawn."


def _architecture(architecture: str, facts: dict[str, Any]) -> str:
    total, growth = facts["parameters"], facts["cache_bytes_per_token"]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in facts["parameters_by_kind"].items())
    rows = {
        "class": code(architecture),
        "layers": f"{code(facts['pattern'])}, {len(facts['layers'])} in all",
        "parameters": f"{total:,} ({kinds})",
        "widths": f"model {facts['hidden_size']:,}, state {facts['state_size']:,}, MLP {facts['mlp_size']:,}",
        "vocabulary": f"{facts['vocab_size']:,} tokens",
        "dtype of the weights": facts["dtype"],
        "memory of a text": f"{facts['cache_bytes']:,} bytes"
        + (f", and {growth:,} for each token" if growth else ", however long it is"),
    }
    return table(None, rows.items())


def _no_memory(layers: Sequence[str]) -> str:
    mixers = ",".join(dict.fromkeys([repeated(layers), *layers]))
    return (
        f"Not included. `hybridlm memory-suite --mixers {shlex.quote(mixers)} --out FOLDER` measures small models of "
        "these mixers, and `hybridlm card CHECKPOINT --memory FOLDER` shows them here."
    )


def _start_symbol(folder: Path) -> str | None:
    """That of the checkpoint's tokenizer; None where it has none."""
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        return None
    return str(tokenizer.convert_ids_to_tokens(start_and_end(tokenizer)[0]))
