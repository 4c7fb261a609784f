"""What a checkpoint is: stack, parameters by kind, memory of a sequence while it generates.

Nothing is computed with the weights: the model is built without storage from its config.json, and one token is sent
through it to see what the cache keeps.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

import hybridlm
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import locate, quiet_transformers, read_config
from hybridlm.model.attention_hybridlm import Attention, SlidingAttention
from hybridlm.model.block_hybridlm import RecurrentMixer, SwiGLU
from hybridlm.model.cache_hybridlm import HybridRecurrentLayer
from hybridlm.model.cell_hybridlm import Cell
from hybridlm.model.conv_hybridlm import ShortConv
from hybridlm.model.mamba2_hybridlm import GroupedRMSNorm, Mamba2Mixer, SsdCell
from hybridlm.model.mixers_hybridlm import CELLS


def describe(checkpoint: str | Path) -> dict[str, Any]:
    """The facts about a checkpoint of this package, as plain numbers and strings.

    Raises UserError where there is none.
    """
    source = locate(checkpoint)
    config: Any = read_config(source, f"checkpoint {checkpoint}")
    if config.model_type != "hybridlm":
        raise UserError(
            f"checkpoint {checkpoint}: its model_type is {config.model_type!r}; `info` describes checkpoints of "
            "hybridlm only."
        )
    try:
        with quiet_transformers(), torch.device("meta"):
            model = _model_class(config)(config)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {checkpoint}: its config.json cannot be used ({' '.join(str(error).split())[:400]})."
        ) from error
    kinds, stack = parameters_by_kind(model), cast(PreTrainedModel, model.base_model)
    return {
        "checkpoint": source,
        "model_type": config.model_type,
        "pattern": config.pattern,
        "layers": list(config.block_types),
        "hidden_size": config.hidden_size,
        "state_size": config.recurrence_size,
        "mlp_size": config.mlp_size,
        "vocab_size": config.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "dtype": str(config.dtype or "unknown").removeprefix("torch."),
        "epsilon": model.epsilon,
        "finite_state_heads": finite_state_heads(config),
        "parameters": sum(kinds.values()),
        "parameters_by_kind": kinds,
        **cache_bytes(stack, config),
        "special_tokens": {name: getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """That which config.json names, so that a head's parameters count; the language model where it names none."""
    found: Any = getattr(hybridlm, str(next(iter(config.architectures or []), "")), None)
    known = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return found if known else hybridlm.HybridLMForCausalLM


def render(facts: dict[str, Any]) -> str:
    """The facts of `describe` as lines for a terminal."""
    total = facts["parameters"]
    growth = facts["cache_bytes_per_token"]
    grows = f", and {growth:,} bytes for each token (attention)" if growth else ", however long it gets"
    epsilon = "no annealed layer" if facts["epsilon"] is None else f"{facts['epsilon']:g} (a loaded model is bistable)"
    lines = {
        "checkpoint": facts["checkpoint"],
        "pattern": f"{facts['pattern']}   {len(facts['layers'])} layers",
        "widths": f"model {facts['hidden_size']:,}, state {facts['state_size']:,}, MLP {facts['mlp_size']:,}",
        "vocabulary": f"{facts['vocab_size']:,} tokens; "
        + ", ".join(f"{name} {value}" for name, value in facts["special_tokens"].items()),
        "dtype": facts["dtype"],
        "epsilon": epsilon,
        **_automata(facts["finite_state_heads"]),
        "cache": f"{facts['cache_bytes']:,} bytes a sequence{grows}",
        "parameters": f"{total:,}",
    }
    rows = [f"{name:<12}{value}" for name, value in lines.items()]
    rows += [
        f"{'':<12}{count:>14,}  {count / total:6.1%}  {kind}" for kind, count in facts["parameters_by_kind"].items()
    ]
    return "\n".join(rows)


def _automata(heads: dict[str, int] | None) -> dict[str, str]:
    """A line for a model that has any."""
    if heads is None:
        return {}
    layers = f"{heads['layers']} nfsm layer" + ("s" if heads["layers"] > 1 else "")
    return {"automata": f"{heads['heads']:,} of {heads['states']} states each, in {layers}; a byte each in the cache"}


def finite_state_heads(config: PreTrainedConfig) -> dict[str, int] | None:
    """In how many layers there is `nfsm`, how many heads these have together, and the states of each; None without."""
    layers = sum("nfsm" in block.split("+") for block in config.block_types)
    count = sum(block.split("+").count("nfsm") for block in config.block_types)
    return {"layers": layers, "heads": count * config.nfsm_heads, "states": config.nfsm_states} if layers else None


def parameters_by_kind(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters of each kind, largest first. A tied output projection counts once, as embeddings."""
    kinds: Counter[str] = Counter()
    counted: set[int] = set()
    cells = {cell: name for name, cell in CELLS.items()} | {SsdCell: "mamba2"}
    for module, kind in _kinds(model, "other", cells):
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                kinds[kind] += parameter.numel()
    return dict(kinds.most_common())


def _kinds(module: nn.Module, kind: str, cells: dict[type, str]) -> list[tuple[nn.Module, str]]:
    """Every module below with the kind of its own parameters, which children inherit."""
    if isinstance(module, Cell):
        kind = f"cell {cells.get(type(module), type(module).__name__)}"
    elif isinstance(module, nn.Embedding):
        kind = "embeddings"
    else:
        names = {
            RecurrentMixer: "projections and gates",
            Mamba2Mixer: "projections and gates",
            Attention: "attention",
            SlidingAttention: "attention",
            SwiGLU: "MLP",
            ShortConv: "convolution",
            nn.RMSNorm: "norms",
            GroupedRMSNorm: "norms",
        }
        kind = next((name for known, name in names.items() if isinstance(module, known)), kind)
    found = [(module, kind)]
    for name, child in module.named_children():
        found += _kinds(child, "output projection" if name == "lm_head" else kind, cells)
    return found


def cache_bytes(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, int]:
    """Bytes that one sequence keeps while it generates: `cache_bytes`, constant, and `cache_bytes_per_token`, from
    attention layers. Sliding windows count as full.
    """
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model.eval()(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True
        )
    constant = growing = 0
    for layer in cache.layers:
        if isinstance(layer, HybridRecurrentLayer):
            constant += sum(t.numel() * t.element_size() for t in [*layer.states.values(), layer.conv] if t is not None)
        else:
            held = [getattr(layer, name) for name in ("keys", "values")]
            one_token = sum(t.numel() * t.element_size() for t in held if t is not None)
            if getattr(layer, "is_sliding", False):
                constant += one_token * (config.sliding_window - 1)
            else:
                growing += one_token
    return {"cache_bytes": constant, "cache_bytes_per_token": growing}
