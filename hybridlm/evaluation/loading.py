"""A checkpoint to a model in evaluation mode and its tokenizer, or one clear error.

transformers fills a missing weight with a new random one and goes on, and takes any unknown path for a name on the Hub.
Here a checkpoint whose weights do not fit is refused, and what can only be a local path is never looked up on the
network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import hybridlm  # noqa: F401  registers the model with the Auto classes
from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.errors import UserError, did_you_mean
from hybridlm.files import expanded
from hybridlm.safe_loading import FAULTS, NO_CODE, SAFETENSORS, brief, check_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What `dtype` may name, besides `auto`: as saved."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""OWNER/MODEL."""


def load_checkpoint(
    checkpoint: str | Path, *, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model, in evaluation mode, and tokenizer of a `from_pretrained` folder, or of a name OWNER/MODEL on the Hub.

    dtype: `auto` (as saved) or a key of DTYPES. device: `auto` (an accelerator if there is one, else the CPU) or a
    torch device. Raises UserError: nothing there, damaged or unfit weights, no tokenizer, unknown dtype or device.
    """
    source = locate(checkpoint)
    kind = torch_dtype(dtype)
    place = torch_device(device)
    # Of a folder, the tokenizer first: it is the quicker check.
    tokenizer = load_tokenizer(source) if Path(source).is_dir() else None
    model: Any = load_weights(checkpoint, source, AutoModelForCausalLM, dtype=kind)
    if tokenizer is None:
        tokenizer = load_tokenizer(source)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"checkpoint {checkpoint}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}. "
            "Put the tokenizer that the model was trained with into the folder."
        )
    return model.to(place).eval(), tokenizer


def read_config(source: str, what: str) -> PreTrainedConfig:
    """The configuration of `source`, a folder or a name on the Hub. Raises UserError, which begins with `what`."""
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source, **NO_CODE)
    except FAULTS as error:
        raise UserError(f"{what}: its config.json cannot be used ({brief(error)}).") from error


def load_weights(
    checkpoint: str | Path,
    source: str,
    model_class: Any,
    *,
    dtype: torch.dtype | str = "auto",
    field: str = "checkpoint",
) -> PreTrainedModel:
    """The model of `source` (a folder, or a name on the Hub) as `model_class`, or an Auto class, loads it.

    Raises UserError, which names `field` and `checkpoint`, where its weights are damaged, missing or left over,
    or no safetensors.
    """
    if Path(source).is_dir():
        read_config(source, f"{field} {checkpoint}")
    check_weights(source, f"{field} {checkpoint}")
    options: Any = {"dtype": dtype, "output_loading_info": True, **SAFETENSORS, **NO_CODE}
    try:
        with quiet_transformers():
            loaded: Any = model_class.from_pretrained(source, **options)
            model, notes = loaded
    except FAULTS as error:
        raise UserError(f"{field} {checkpoint}: {_unreadable(source, error)}") from error
    unfit = {name: sorted(map(str, notes[name])) for name in ("missing_keys", "unexpected_keys") if notes[name]}
    kinds, kind = model.config.architectures or [], type(model).__name__
    if unfit and kinds and kind not in kinds:
        raise UserError(f"{field} {checkpoint}: holds a {kinds[0]}, and a {kind} is needed. Give a checkpoint of one.")
    if unfit:
        raise UserError(
            f"{field} {checkpoint}: its weights do not fit its config.json ("
            + "; ".join(
                f"{name.replace('_', ' ')}: {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}"
                for name, keys in unfit.items()
            )
            + "). Copy the folder again from where it was written."
        )
    return model


def locate(checkpoint: str | Path, field: str = "checkpoint") -> str:
    """The folder as it was given, or a name that may be on the Hub. Raises UserError where there is no checkpoint.

    field: what the message calls it.
    """
    path = expanded(checkpoint)
    if (path / "model.onnx").is_file() and not any(path.glob("*.safetensors")):
        raise UserError(
            f"{field} {checkpoint}: that is an ONNX export, a graph without the weights' names. Give the checkpoint "
            "that it was made from."
        )
    if (path / "config.json").is_file():
        return str(path)
    if path.is_dir():
        raise UserError(f"{field} {checkpoint}: the folder has no config.json, so it is no checkpoint.{_inside(path)}")
    if path.is_file():
        raise UserError(
            f"{field} {checkpoint}: that is a file. Give the folder that holds config.json and the weights."
        )
    owner = str(checkpoint).partition("/")[0]
    if HUB_NAME.fullmatch(str(checkpoint)) and not Path(owner).exists():
        return str(checkpoint)
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    raise UserError(
        f"{field} {checkpoint}: there is no such folder{did_you_mean(path.name, names) or '.'} Give the folder of a "
        "checkpoint, such as "
        "runs/demo/run/final, or OWNER/MODEL on the Hugging Face Hub."
    )


def torch_dtype(name: str) -> torch.dtype | str:
    """The torch dtype of a key of DTYPES; `auto` stays `auto`."""
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UserError(f"dtype={name!r}: must be auto, {', '.join(DTYPES)}{did_you_mean(name, DTYPES) or '.'}")
    return DTYPES[name]


def torch_device(name: str) -> torch.device:
    """The torch device of that name, if this machine has it; `auto`: an accelerator if there is one, else the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r}: not usable here ({reason}). Give auto, cpu, cuda or cuda:1.") from None
    return device


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, no progress bars and no notes below errors: a command prints its own result."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _inside(folder: Path) -> str:
    """A hint at the checkpoints below `folder`, where there are any: a run's folder is easily given for its
    checkpoint's.
    """
    found: list[Any] = [
        path.parent for path in sorted(folder.glob("**/config.json")) if len(path.relative_to(folder).parts) < 4
    ]
    if not found:
        return " Give the folder that `hybridlm pretrain` printed at its end."
    found.sort(key=lambda path: (path.name != "final", str(path)))
    return f" Below it there is {', '.join(map(str, found[:3]))}."


def _unreadable(source: str, error: Exception) -> str:
    reason = brief(error)
    if Path(source).is_dir():
        advice = "Copy the folder again from where it was written."
    else:
        advice = "There is no folder of that name here: check the spelling, and whether the Hub can be reached."
    return f"cannot be loaded ({reason}). {advice}"
