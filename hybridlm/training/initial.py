"""`training.init_from`: a run that begins with the weights of a checkpoint.

Nothing is made to fit: another architecture, another tokenizer, and weights that are missing, left over or of another
shape are refused, with everything that differs. What decides the start of random weights alone, dropout, and the slopes
of surrogate gradients may be others.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.tokenizer import load_tokenizer, looks_local
from hybridlm.errors import UserError, did_you_mean
from hybridlm.files import expanded
from hybridlm.safe_loading import FAULTS, SAFETENSORS, check_weights
from hybridlm.training.checkpoints import CHECKSUMS, STATE, damage
from hybridlm.training.state import quiet

_MAY_DIFFER = {
    "initializer_range", "decay_min", "decay_max", "phase_max", "threshold_init", "amplitude_init", "surrogate_slope",
    "attention_dropout", "classifier_dropout", "max_position_embeddings", "use_cache", "format_version",
    "pad_token_id", "bos_token_id", "eos_token_id",
    *PreTrainedConfig.__dataclass_fields__,
}  # fmt: skip
"""Fields of the configuration that change nothing about what given weights compute. The symbols are the tokenizer's,
which is compared by itself; the rest of PreTrainedConfig is bookkeeping and classification heads."""
_RESOLVED = {
    "pattern": "block_types",
    "state_size": "recurrence_size",
    "intermediate_size": "mlp_size",
}
"""Fields that can say the same in several ways, and the property that says it in one."""

_FITTING = "Give the recipe what the checkpoint was made with, or another checkpoint."
_GIVE = "Give a checkpoint, such as runs/NAME/final, or OWNER/NAME on the Hugging Face Hub."
_UNFIT = {
    "missing_keys": "missing weights",
    "unexpected_keys": "weights left over",
    "mismatched_keys": "weights of another shape (name, in the checkpoint, in the recipe)",
}


def check_initial(source: str, model: dict[str, Any]) -> None:
    """Looks at the checkpoint `source` as far as that can be done without data: what it is, its architecture, and
    where it has checksums, which `load_initial` does not look at, whether it is whole (reads all of it). model: the
    recipe's section. Raises UserError."""
    source = _expanded(source)
    config = _config_of(source)
    keywords: dict[str, Any] = model | {"vocab_size": config.vocab_size}
    problems = _other_architecture(config, HybridLMConfig(**keywords))
    if problems:
        raise _refused(source, problems, _FITTING)
    fault = damage(Path(source)) if (Path(source) / STATE / CHECKSUMS).is_file() else None
    if fault is not None:
        raise UserError(
            f"training.init_from={source!r} is damaged ({fault}). Copy the folder again from where it was written; if "
            f"it was changed on purpose, remove {STATE}/{CHECKSUMS} from it."
        )


def load_initial(model: HybridLMForCausalLM, tokenizer: Any, source: str) -> None:
    """Puts the weights of the checkpoint `source` (a folder, or OWNER/NAME on the Hub) into `model`.

    tokenizer: that of the data. Raises UserError with everything that does not fit; the model is untouched then.
    """
    source = _expanded(source)
    config = _config_of(source)
    problems = _other_architecture(config, model.config)
    problems += _other_tokenizer(load_tokenizer(source), tokenizer)
    if problems:
        raise _refused(source, problems, _FITTING)
    check_weights(source, f"training.init_from={source!r}")
    try:
        with _quiet():
            # Sizes are ignored to be named below: the error that transformers raises says none.
            options: Any = {
                "dtype": torch.float32,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,
                **SAFETENSORS,
            }
            loaded: Any = HybridLMForCausalLM.from_pretrained(source, **options)
    except FAULTS as error:
        raise UserError(f"training.init_from={source!r}: its weights cannot be read ({_line(error)}).") from error
    found, notes = loaded
    problems = [
        f"{word}: {', '.join(sorted(map(str, notes[name]))[:5])}" for name, word in _UNFIT.items() if notes[name]
    ]
    if problems:
        raise _refused(source, problems, "Copy the folder again from where it was written.")
    # Copied: `from_pretrained` makes new parameters, without the marks that parameter groups are made by.
    model.load_state_dict(found.state_dict())


def is_local(source: str) -> bool:
    """Whether `source` can only be a folder of this machine, or is one."""
    return expanded(source).is_dir() or looks_local(source) or "/" not in source


def _expanded(source: str) -> str:
    path = expanded(source)
    return str(path) if path.is_dir() else source


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no progress bars and no tables of transformers: what is wrong is said here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)


def _config_of(source: str) -> HybridLMConfig:
    folder = Path(source)
    if not (folder / "config.json").is_file() and is_local(source):
        what = "there is no config.json in that folder" if folder.is_dir() else "there is no such folder"
        raise UserError(f"training.init_from={source!r}: {what}{_near(folder)} {_GIVE}")
    try:
        with _quiet():
            values, _ = HybridLMConfig.get_config_dict(source)
            kind = values.get("model_type")
            if kind != HybridLMConfig.model_type:
                raise UserError(
                    f"training.init_from={source!r}: that is a model of type {kind!r}, and only checkpoints of "
                    "hybridlm fit. `hybridlm convert` makes one of some other models."
                )
            if values.get("quantization_config") is not None:
                raise UserError(
                    f"training.init_from={source!r}: its weights are quantized. Give the checkpoint that it was made "
                    "from."
                )
            return HybridLMConfig.from_pretrained(source)  # pyright: ignore[reportReturnType]
    except UserError:
        raise
    except (OSError, ValueError) as error:
        if not folder.exists() and folder.parent.is_dir():  # meant as a path, most likely; the Hub has none either
            raise UserError(
                f"training.init_from={source!r}: there is no such folder in {folder.parent}{_near(folder)} {_GIVE}"
            ) from error
        raise UserError(f"training.init_from={source!r}: it cannot be read ({_line(error)}).") from error


def _near(folder: Path) -> str:
    """The end of the sentence: a guess at which folder beside it was meant, where there is one."""
    if folder.exists() or not expanded(folder).parent.is_dir():
        return "."
    beside = [path.name for path in expanded(folder).parent.iterdir() if path.is_dir()]
    return did_you_mean(folder.name, beside) or "."


def _other_architecture(theirs: HybridLMConfig, ours: HybridLMConfig) -> list[str]:
    problems = []
    for field in dataclasses.fields(HybridLMConfig):
        if field.name in _MAY_DIFFER:
            continue
        then, now = (getattr(config, field.name) for config in (theirs, ours))
        if field.name in _RESOLVED and then != now:
            name = _RESOLVED[field.name]
            same = getattr(theirs, name) == getattr(ours, name)
            then, now = (
                getattr(config, name) if value is None else value for config, value in ((theirs, then), (ours, now))
            )
            if same:
                continue
        if then != now:
            problems.append(f"model.{field.name}: {then} in the checkpoint, {now} in the recipe")
    return problems


def _other_tokenizer(theirs: Any, ours: Any) -> list[str]:
    then, now = theirs.get_vocab(), ours.get_vocab()
    if then != now:
        moved = sum(now.get(token) != number for token, number in then.items())
        return [
            f"the tokenizer: {len(then)} tokens in the checkpoint, {len(now)} in the data; {moved} of the checkpoint's "
            "have another number in the data or none. Prepare the data with data.prepare.tokenizer set to the "
            "checkpoint"
        ]
    rules, symbols = _rules(theirs) != _rules(ours), _symbols(theirs) != _symbols(ours)
    differs = ["another way of cutting text into them"] * rules + ["another start, end or padding symbol"] * symbols
    return [f"the tokenizer: the same tokens, but {' and '.join(differs)}"] if differs else []


def _rules(tokenizer: Any) -> Any:
    """All that decides the tokens of a text; None for a tokenizer in plain Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    return {name: value for name, value in rules.items() if name not in ("truncation", "padding", "version")}


def _symbols(tokenizer: Any) -> tuple[Any, ...]:
    return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id


def _refused(source: str, problems: list[str], advice: str) -> UserError:
    listing = "\n".join(f"  - {problem}" for problem in problems)
    return UserError(f"training.init_from={source!r} does not fit.\n{listing}\n{advice}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
