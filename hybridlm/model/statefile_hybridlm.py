"""The file of a conversation: one safetensors file whose header says which model made it.

The header holds the fields of the configuration that decide what a state means, dtype, epsilon, a hash over a sample
of all weights, and a checksum of the tensors. A state is nonsense to any other model, so loading refuses there, naming
what differs, and for bytes that changed. Files are written aside, put on the disk and renamed.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

from .snapshot_hybridlm import LayerSnapshot, put, static_length, take, tokens_seen

FILE_FORMAT = 1
"""Version of the file; a higher one was written by a newer hybridlm."""

SAMPLE = 64
"""Elements of each weight that decide whether two models are the same."""

_NO_PART_OF_A_STATE = {
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "format_version", "initializer_range",
    "attention_dropout", "decay_min", "decay_max", "phase_max", "threshold_init", "amplitude_init",
}  # fmt: skip
"""Fields of the configuration that choose symbols, or only how a training starts."""


_HEADER = {"hybridlm_conversation", "model", "tokens", "max_cache_len", "layers", "checksum", "notes"}


def write(
    model: PreTrainedModel, path: str | Path, cache: Cache, extra: dict[str, Tensor], notes: dict[str, str]
) -> None:
    """Writes a cache of `model`, and named tensors beside it. Raises ValueError as `take`; OSError where it cannot."""
    path, layers, tensors = Path(path), [], dict(extra)
    for index, snapshot in enumerate(take(cache)):
        layers.append({**vars(snapshot), "tensors": list(snapshot.tensors)})
        tensors |= {f"layers.{index}.{name}": tensor for name, tensor in snapshot.tensors.items()}
    # Copies: two views of one storage cannot stand in one file.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {
        "hybridlm_conversation": FILE_FORMAT,
        "model": fingerprint(model),
        "tokens": tokens_seen(cache),
        "max_cache_len": static_length(cache),
        "layers": layers,
        "checksum": _checksum(tensors),
        "notes": notes,
    }
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file(tensors, aside, metadata={name: json.dumps(value) for name, value in header.items()})
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except SafetensorError as error:  # what safetensors makes of an OSError of its own
        raise OSError(f"{path}: cannot be written ({error}).") from None
    finally:
        aside.unlink(missing_ok=True)


def read(model: PreTrainedModel, path: str | Path) -> tuple[Cache, dict[str, Tensor], dict[str, str]]:
    """The cache, the tensors beside it and the notes, on the devices where `model` computes.

    Raises FileNotFoundError; ValueError where another model wrote the file, or where it is damaged.
    """
    header, tensors = _read(Path(path))
    _check_model(path, header["model"], fingerprint(model))
    if header["max_cache_len"] is None:
        cache = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=header["max_cache_len"])
    kinds, here = [layer["kind"] for layer in header["layers"]], [type(layer).__name__ for layer in cache.layers]
    if kinds != here:
        raise ValueError(
            f"{path}: its layers are {kinds}, where this version of transformers makes {here} of the same model. Read "
            "the text again with this version."
        )
    with torch.no_grad():
        for index, (layer, facts) in enumerate(zip(cache.layers, header["layers"], strict=True)):
            held = {name: tensors.pop(f"layers.{index}.{name}").to(_device(model, index)) for name in facts["tensors"]}
            put(layer, LayerSnapshot(facts["kind"], facts["length"], facts["written"], held))
    return cache, {name: tensor.to(model.device) for name, tensor in tensors.items()}, header["notes"]


def read_header(path: str | Path) -> dict[str, Any]:
    """What a file says about itself, without its tensors: `tokens`, `notes`, `model`, `layers`.

    Raises FileNotFoundError, and ValueError where the file is no whole conversation, or a newer hybridlm wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Give one that save_cache or `hybridlm read` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = {name: json.loads(value) for name, value in (file.metadata() or {}).items() if name in _HEADER}
            names = set(file.keys())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}). Write it again with save_cache.") from None
    version = header.get("hybridlm_conversation")
    if not isinstance(version, int):
        raise ValueError(f"{path}: a safetensors file, but not a conversation. Give one that save_cache wrote.")
    if version > FILE_FORMAT:
        raise ValueError(f"{path}: format {version} of a newer hybridlm; this one knows {FILE_FORMAT}. Upgrade it.")
    layers = header.get("layers", [])
    wanted = {f"layers.{index}.{name}" for index, layer in enumerate(layers) for name in layer["tensors"]}
    if header.keys() != _HEADER or not wanted <= names:
        raise ValueError(f"{path}: parts of it are missing. Write it again with save_cache.")
    return header


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """What decides whether a state means the same to two models, as plain values.

    `weights` is a hash over at most 2 * SAMPLE evenly spaced elements of every weight below the head; quantized,
    sharded or offloaded weights count with name, shape and dtype only.
    """
    config = model.config
    fields = set(type(config).__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - _NO_PART_OF_A_STATE
    facts = {name: getattr(config, name) for name in sorted(fields | {"vocab_size", "hidden_size"})}
    facts |= {"state_size": config.recurrence_size, "intermediate_size": config.mlp_size}
    facts |= {"dtype": str(model.dtype).removeprefix("torch."), "epsilon": model.epsilon}
    seen = hashlib.sha256()
    for name, weight in sorted(model.base_model.state_dict().items()):
        seen.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if type(weight) is Tensor and weight.device.type != "meta":
            some = weight.reshape(-1)[:: max(1, weight.numel() // SAMPLE)]
            seen.update(_bytes(some.cpu()))
    return json.loads(json.dumps(facts | {"weights": seen.hexdigest()[:16]}))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}). Write it again with save_cache.") from None
    if _checksum(tensors) != header["checksum"]:
        raise ValueError(f"{path}: damaged, its checksum is another one. Copy it again, or write it with save_cache.")
    return header, tensors


def _check_model(path: str | Path, saved: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [
        f"{name} {value!r} (here {here.get(name)!r})" for name, value in saved.items() if here.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{path}: another model wrote it, with {', '.join(differing)}. A state means nothing to other weights: "
            "load the model that it was saved with, or read the text again."
        )


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 over names, shapes and bytes."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode(), total)
        total = zlib.crc32(_bytes(tensors[name]), total)
    return total


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _device(model: Any, layer: int) -> torch.device:
    """Where a layer computes; the model's own device where its weights are offloaded."""
    device = next(model.base_model.layers[layer].parameters()).device
    return model.device if device.type == "meta" else device
