"""Trained models of the suite, kept as checkpoints that transformers loads.

A task of symbols asks for a class at every symbol, so its model is a `HybridLMForTokenClassification`: letters are its
tokens, classes its labels. Beside the weights stands `memory_suite.json`, the record of the run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridlm import HybridLMForTokenClassification
from hybridlm.errors import UserError
from hybridlm.evaluation.memory.model import MemoryModel
from hybridlm.evaluation.memory.recipe import named_recipe
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.store import agree, key_of
from hybridlm.files import write_folder

RECORD = "memory_suite.json"
LONGEST_NAME = 150
"""Characters of a folder's name, which file systems limit; what is longer ends in a hash."""


def check_keeping(tasks: Sequence[str]) -> None:
    """Raises UserError for a task whose models cannot be kept."""
    for task in tasks:
        if not TASKS[task](True).symbols:
            raise UserError(
                f"keep: the inputs of {task} are values, and a checkpoint of transformers takes tokens. Leave --keep "
                "out, or name tasks of symbols."
            )


def folder_of(out: Path, record: dict[str, Any]) -> Path:
    """Where the model of a record is kept."""
    recipe, changed = named_recipe(record["changed"])
    changes = [f"{name}={json.dumps(value)}" for name, value in sorted(changed.items())]
    named = [recipe] if recipe else []
    parts = [record["task"], record["form"], record["mixer"], *named, *changes, f"seed{record['seed']}"]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(parts))
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return models(out) / name


def models(out: Path) -> Path:
    """The folder of all of them."""
    return out / "models"


def is_kept(out: Path, record: dict[str, Any]) -> bool:
    """Whether there is a model of these settings."""
    try:
        kept = json.loads((folder_of(out, record) / RECORD).read_text(encoding="utf-8"))
        return key_of(kept) == key_of(record) and agree(kept, record)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def keep_model(model: MemoryModel, out: Path, record: dict[str, Any]) -> Path:
    """Writes the folder of a trained model, or replaces it. Returns its path."""
    folder = folder_of(out, record)

    def fill(aside: Path) -> None:
        as_classifier(model).save_pretrained(aside)
        (aside / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    write_folder(folder, fill)
    return folder


def as_classifier(model: MemoryModel) -> HybridLMForTokenClassification:
    """The same model as a class of transformers. The model must be one of symbols."""
    assert model.encoder is None, "values are no tokens"
    config = copy.deepcopy(model.backbone.config)
    config.num_labels = model.head.out_features
    kept = HybridLMForTokenClassification(config)
    kept.model.load_state_dict(model.backbone.state_dict())
    kept.score.load_state_dict(model.head.state_dict())
    return kept.eval()
