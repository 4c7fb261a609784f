"""The file of a conversation: one safetensors file whose header says which model made it.

The header holds the fields of the configuration that decide what a state means, dtype, epsilon, a hash over a sample
of all weights, a checksum of the tensors, and one of the header itself. A state is nonsense to any other model, so
loading refuses there, naming what differs, and for bytes that changed. Files are written aside, put on the disk and
renamed.
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
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

from .cache_hybridlm import take_over
from .cell_hybridlm import RECURRENT_LAYER
from .recurrence_hybridlm import initial_states
from .snapshot_hybridlm import LayerSnapshot, put, static_length, take, tokens_seen

FILE_FORMAT = 2
"""Version of the file, the only one that is read; a higher one was written by a newer hybridlm. 1 had no checksum of
the header."""

SAMPLE = 64
"""Elements of each weight that decide whether two models are the same."""

_NO_PART_OF_A_STATE = {
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "format_version", "initializer_range",
    "attention_dropout", "classifier_dropout", "decay_min", "decay_max", "phase_max", "threshold_init",
    "amplitude_init", "surrogate_slope", "tie_word_embeddings", "input_skip",
}  # fmt: skip
"""Fields of the configuration that choose symbols, concern the head, act in a training alone, or show in the names of
the weights."""

_AGAIN = "Copy it again, or write it again with save_cache or `hybridlm read`."
_VERSION, _SEAL = "hybridlm_conversation", "header_checksum"
_HEADER = {_VERSION, "model", "tokens", "max_cache_len", "layers", "checksum", "notes"}


def write(
    model: PreTrainedModel, path: str | Path, cache: Cache, extra: dict[str, Tensor], notes: dict[str, str]
) -> None:
    """Writes a cache of `model`, and named tensors beside it.

    Raises ValueError as `take`, and where a model of other layers or sizes filled the cache; OSError where it cannot.
    """
    path, layers, tensors, snapshots = Path(path), [], dict(extra), take(cache)
    _check_cache(model, cache, snapshots)
    for index, snapshot in enumerate(snapshots):
        layers.append({**vars(snapshot), "tensors": list(snapshot.tensors)})
        tensors |= {f"layers.{index}.{name}": tensor for name, tensor in snapshot.tensors.items()}
    # Copies: two views of one storage cannot stand in one file.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {
        _VERSION: FILE_FORMAT,
        "model": fingerprint(model),
        "tokens": tokens_seen(cache),
        "max_cache_len": static_length(cache),
        "layers": layers,
        "checksum": _checksum(tensors),
        "notes": notes,
    }
    metadata = {name: json.dumps(value) for name, value in header.items()}
    metadata[_SEAL] = _seal(metadata)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # as the umask has it; safetensors gives what it writes to the owner alone
        save_file(tensors, aside, metadata=metadata)
        aside.chmod(mode)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:  # what safetensors makes of an OSError of its own
        raise OSError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}).") from None
    finally:
        aside.unlink(missing_ok=True)


def read(model: PreTrainedModel, path: str | Path) -> tuple[Cache, dict[str, Tensor], dict[str, str]]:
    """The cache, the tensors beside it and the notes, on the devices where `model` computes.

    Raises FileNotFoundError; ValueError where another model wrote the file, or where it is damaged.
    """
    header, tensors = _read(Path(path))
    _check_model(path, header["model"], fingerprint(model))
    cache = _empty_cache(model, header["max_cache_len"])
    kinds, here = [layer["kind"] for layer in header["layers"]], _kinds(cache)
    if kinds != here:
        raise ValueError(
            f"{path}: its layers are {kinds}, where this version of transformers makes {here} of the same model. Read "
            "the text again with this version."
        )
    blocks: Any = model.base_model.layers
    with torch.no_grad():
        for index, (layer, facts) in enumerate(zip(cache.layers, header["layers"], strict=True)):
            device = _device(blocks[index])
            held = {name: tensors.pop(f"layers.{index}.{name}").to(device) for name in facts["tensors"]}
            _check_held(path, model, index, held, facts)
            put(layer, LayerSnapshot(facts["kind"], facts["length"], facts["written"], held))
    return cache, {name: tensor.to(_device(model)) for name, tensor in tensors.items()}, header["notes"]


def read_header(path: str | Path) -> dict[str, Any]:
    """What a file says about itself, without its tensors: `tokens`, `notes`, `model`, `layers`.

    Raises FileNotFoundError, and ValueError where the file is no whole conversation, what it says was changed, or
    another version of hybridlm wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Give one that save_cache or `hybridlm read` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}). {_AGAIN}") from None
    _check_version(path, metadata.get(_VERSION, ""))
    if metadata.pop(_SEAL, None) != _seal(metadata):
        raise ValueError(f"{path}: damaged, its header was changed. {_AGAIN}")
    try:
        header = {name: json.loads(value) for name, value in metadata.items()}
        whole = _is_whole(header, names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its header says nothing of use ({error!r:.200}). {_AGAIN}") from None
    if not whole:
        raise ValueError(f"{path}: parts of it are missing. {_AGAIN}")
    return header


def _is_whole(header: dict[str, Any], names: set[str]) -> bool:
    """Whether a header says all that it has to, of tensors that are there; or raises one of many errors."""
    if header.keys() != _HEADER:
        return False
    layers, numbers = header["layers"], [header["tokens"], header["checksum"]]
    numbers += [layer[name] for layer in layers for name in ("length", "written")]
    numbers += [] if header["max_cache_len"] is None else [header["max_cache_len"]]
    whole = all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    whole = whole and type(header["model"]) is dict and all(type(layer["kind"]) is str for layer in layers)
    return whole and {f"layers.{index}.{name}" for index, one in enumerate(layers) for name in one["tensors"]} <= names


def _check_version(path: Path, said: str) -> None:
    if not said.isdecimal():
        raise ValueError(
            f"{path}: a safetensors file, but not a conversation. Give one that save_cache or `hybridlm read` wrote."
        )
    version = int(said)
    if version > FILE_FORMAT:
        raise ValueError(f"{path}: format {version} of a newer hybridlm; this one knows {FILE_FORMAT}. Upgrade it.")
    if version < FILE_FORMAT:
        raise ValueError(
            f"{path}: format {version} of an older hybridlm; this one reads {FILE_FORMAT}. Read the text again, and "
            "save it with this one."
        )


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """What decides whether a state means the same to two models, as plain values.

    `weights` is the hash of all weights below the head.
    """
    config = model.config
    fields = set(type(config).__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - _NO_PART_OF_A_STATE
    facts = {name: getattr(config, name) for name in sorted(fields | {"vocab_size", "hidden_size"})}
    facts |= {"state_size": config.recurrence_size, "intermediate_size": config.mlp_size}
    facts |= {"dtype": str(model.dtype).removeprefix("torch."), "epsilon": model.epsilon}
    return json.loads(json.dumps(facts | {"weights": weights_hash(model.base_model)}))


def weights_hash(part: nn.Module) -> str:
    """A hash over at most 2 * SAMPLE evenly spaced elements of every weight; quantized, sharded or offloaded weights
    count with name, shape and dtype only."""
    seen = hashlib.sha256()
    for name, weight in sorted(part.state_dict().items()):
        seen.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if type(weight) is Tensor and weight.device.type != "meta":
            some = weight.reshape(-1)[:: max(1, weight.numel() // SAMPLE)]
            seen.update(_bytes(some.cpu()))
    return seen.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}). {_AGAIN}") from None
    if _checksum(tensors) != header["checksum"]:
        raise ValueError(f"{path}: damaged, its checksum is another one. {_AGAIN}")
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


def _empty_cache(model: PreTrainedModel, max_cache_len: int | None) -> Cache:
    config = model.config
    cache = DynamicCache(config=config) if max_cache_len is None else StaticCache(config, max_cache_len=max_cache_len)
    take_over(cache)
    return cache


def _kinds(cache: Cache) -> list[str]:
    return [type(layer).__name__ for layer in cache.layers]


def _check_cache(model: PreTrainedModel, cache: Cache, snapshots: list[LayerSnapshot]) -> None:
    """Raises ValueError for a cache that this model cannot have filled: layers of other kinds, states of other names
    or sizes. Two models of one shape have the same; which of them filled it, a cache does not say."""
    kinds, here = _kinds(cache), _kinds(_empty_cache(model, static_length(cache)))
    if kinds != here:
        raise ValueError(f"the cache is not this model's: its layers are {kinds}, the model's {here}. {_WHOSE}")
    for index, (snapshot, block) in enumerate(zip(snapshots, model.config.block_types, strict=True)):
        held, wanted = _sizes(snapshot.tensors), _sizes(_first_tensors(model, index))
        if held != wanted:
            raise ValueError(
                f"the cache is not this model's: layer {index} of it holds {held}, {block!r} of the model {wanted}. "
                f"{_WHOSE}"
            )


def _check_held(
    path: str | Path, model: PreTrainedModel, index: int, held: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Raises ValueError for tensors of a file that are not what a layer of the model keeps after so many tokens."""
    keys, wanted = held.get("keys"), _first_tensors(model, index)
    good = held.keys() == wanted.keys() and all(one.ndim == wanted[name].ndim for name, one in held.items())
    good = good and _sizes(held) == _sizes(wanted) and len({len(one) for one in held.values()}) == 1
    if good and keys is not None:
        most = model.config.sliding_window if "Sliding" in facts["kind"] else facts["written"]
        good = keys.shape == held["values"].shape and 0 < keys.shape[2] <= most
    if not good:
        raise ValueError(f"{path}: what it holds of layer {index} is none of its states. {_AGAIN}")


_WHOSE = "Save it with the model that filled it."


def _first_tensors(model: Any, index: int) -> dict[str, Tensor]:
    """Tensors of the names and sizes that a layer of the model keeps for one row; of attention, for one token."""
    mixer, config, nowhere = model.base_model.layers[index].mixer, model.config, torch.device("meta")
    if config.layer_types[index] != RECURRENT_LAYER:
        keys = torch.empty(1, config.num_key_value_heads, 1, config.head_dim, device=nowhere)
        return {"keys": keys, "values": keys}
    states = initial_states(getattr(mixer, "cells", None) or [mixer.cell], 1, nowhere)
    if mixer.conv is None:
        return states
    return states | {"conv": torch.empty(1, mixer.conv.kernel - 1, len(mixer.conv.bias), device=nowhere)}


def _sizes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without the rows, and without the tokens of keys and values, (B, heads, tokens, channels)."""
    growing = {"keys", "values"}
    return {name: (t.shape[1], t.shape[3]) if name in growing else tuple(t.shape[1:]) for name, t in tensors.items()}


def _seal(metadata: dict[str, str]) -> str:
    """CRC-32 over all of a header but itself."""
    said = {name: value for name, value in metadata.items() if name != _SEAL}
    return str(zlib.crc32(json.dumps(said, sort_keys=True).encode()))


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 over names, shapes and bytes."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode(), total)
        total = zlib.crc32(_bytes(tensors[name]), total)
    return total


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _device(part: Any) -> torch.device:
    """Where a part of a model computes: where its weights are, or, if they are offloaded, where accelerate's hook moves
    them for a call."""
    device = next(part.parameters()).device
    hook = getattr(part, "_hf_hook", None)
    return torch.device(hook.execution_device) if device.type == "meta" and hook is not None else device
