"""The models that are compared: stacks of this package and models of transformers, of equal parameters.

Each is what a user gets from pip: no kernels that have to be built beside it. All tie the embedding to the output
projection, so that 6 floating-point operations per parameter and token count the products of training once each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.errors import UserError, did_you_mean

HEAD = 32
"""Width of a head of attention, and of a block of the gates of `rglru`; every width is a multiple of it."""
STEPS = (32, 8)
"""The width of an MLP is a multiple of the first, or where that is too coarse for a small model, of the second."""
TOLERANCE = 0.03
"""How far, as a share, the parameters of a model may be from those asked for."""
LENGTH = 2**16
"""Positions that a model of attention is made for: beyond what is measured."""


@dataclass(frozen=True)
class Family:
    """How to build a model of a width; `unit` layers are one step of depth."""

    name: str
    build: Callable[[int, int, int, int], Any]
    """(hidden_size, layers, width of the MLP, vocab_size) -> a model with random weights."""
    unit: int = 1
    mlp: bool = True
    """Whether its layers have an MLP."""
    ours: bool = False


@dataclass(frozen=True)
class Size:
    """A model of a family, as it was fitted; mlp 0: it has none."""

    family: str
    width: int
    layers: int
    mlp: int
    vocabulary: int
    parameters: int

    def build(self) -> Any:
        return FAMILIES[self.family].build(self.width, self.layers, self.mlp, self.vocabulary)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def _common(width: int, vocabulary: int) -> dict[str, Any]:
    """No special symbols: every model writes as many tokens as it is asked for."""
    symbols = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return {"hidden_size": width, "vocab_size": vocabulary, "tie_word_embeddings": True, **symbols}


def _hybrid(cells: str, unit: int) -> Callable[[int, int, int, int], Any]:
    def build(width: int, layers: int, mlp: int, vocabulary: int) -> Any:
        sizes = {"num_attention_heads": width // HEAD, "intermediate_size": mlp}
        pattern = f"({cells})*{layers // unit}"
        return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, **sizes, **_common(width, vocabulary)))

    return build


def _llama(width: int, layers: int, mlp: int, vocabulary: int) -> Any:
    sizes = {"num_attention_heads": width // HEAD, "intermediate_size": mlp, "max_position_embeddings": LENGTH}
    config = LlamaConfig(num_hidden_layers=layers, **sizes, **_common(width, vocabulary))
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def _mamba(width: int, layers: int, mlp: int, vocabulary: int) -> Any:
    return MambaForCausalLM(MambaConfig(num_hidden_layers=layers, **_common(width, vocabulary)))


def _mamba2(width: int, layers: int, mlp: int, vocabulary: int) -> Any:
    sizes = {"num_heads": 2 * width // 64, "head_dim": 64, "n_groups": 1}
    return Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=layers, **sizes, **_common(width, vocabulary)))


def _recurrent_gemma(width: int, layers: int, mlp: int, vocabulary: int) -> Any:
    # Its MLP is half of `intermediate_size` wide.
    sizes = {"num_attention_heads": width // HEAD, "intermediate_size": 2 * mlp}
    config = RecurrentGemmaConfig(num_hidden_layers=layers, **sizes, **_common(width, vocabulary))
    return RecurrentGemmaForCausalLM(config)


FAMILIES = {
    family.name: family
    for family in (
        Family("rglru bmru", _hybrid("rglru bmru", 2), unit=2, ours=True),
        Family("lru bmru", _hybrid("lru bmru", 2), unit=2, ours=True),
        Family("mamba2", _hybrid("mamba2", 1), ours=True),
        Family("Llama", _llama),
        Family("Mamba", _mamba, mlp=False),
        Family("Mamba-2", _mamba2, mlp=False),
        Family("RecurrentGemma", _recurrent_gemma, unit=3),
    )
}
"""`mamba2` is this package's mixer with an MLP behind it, `Mamba-2` the model of transformers, without."""
QUICK: dict[str, Any] = {"parameters": 200_000, "width": 64, "vocabulary": 64}
"""Sizes that are enough to see whether everything runs."""
OURS = tuple(name for name, family in FAMILIES.items() if family.ours)


def check_names(names: list[str] | tuple[str, ...]) -> list[str]:
    """The names, each once. Raises UserError for one that there is not."""
    for name in names:
        if name not in FAMILIES:
            raise UserError(
                f"models={name!r}: there is no such model{did_you_mean(name, FAMILIES) or '.'} Choose from "
                f"{', '.join(map(repr, FAMILIES))}."
            )
    return list(dict.fromkeys(names))


def check_ours(name: str) -> str:
    """The name of a model of this package. Raises UserError for any other."""
    if name not in OURS:
        raise UserError(
            f"model={name!r}: must be one of this package{did_you_mean(name, OURS) or '.'} Choose from "
            f"{', '.join(map(repr, OURS))}."
        )
    return name


def check_parameters(text: str) -> int:
    """A number of parameters such as 6e6. Raises UserError."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise UserError(f"parameters={text!r}: must be a number such as 6000000 or 6e6.") from None


def fit(name: str, parameters: int, *, width: int = 256, vocabulary: int = 4096) -> Size:
    """The model of a family with so many parameters, up to TOLERANCE.

    It is `width` wide where that is possible, else as near as possible; its depth is the one that fits best with an MLP
    of 8/3 of its width, which is then made wider or narrower. Raises UserError for numbers below 1 and where nothing
    fits.
    """
    for field, value in (("parameters", parameters), ("width", width), ("vocabulary", vocabulary)):
        if value < 1:
            raise UserError(f"{field}={value}: must be at least 1.")
    widths = sorted(range(HEAD, 4 * width + HEAD, HEAD), key=lambda w: abs(math.log(w / width)))
    size = fit_family(FAMILIES[name], parameters, widths, vocabulary)
    if size is None:
        raise UserError(
            f"parameters={parameters:,}: no {name} with a vocabulary of {vocabulary:,} and a width up to {widths[-1]} "
            f"has so many, up to {TOLERANCE:.0%}. Ask for another number, a smaller vocabulary or another width."
        )
    return size


def fit_family(
    family: Family, parameters: int, widths: Sequence[int], vocabulary: int, steps: Sequence[int] = STEPS
) -> Size | None:
    """The model with so many parameters, up to TOLERANCE, of the first width and step of an MLP's width where there is
    one."""
    for wide, step in itertools.product(widths, steps):
        size = _fit_width(family, parameters, wide, vocabulary, step)
        if size is not None and abs(size.parameters / parameters - 1) <= TOLERANCE:
            return size
    return None


def _fit_width(family: Family, parameters: int, width: int, vocabulary: int, step: int) -> Size | None:
    """The best model of this width, its MLP a multiple of `step` wide; None where one step of depth is far too much."""
    unit, usual = family.unit, step * max(1, round(8 * width / (3 * step)))
    one = _count(family, width, unit, usual, vocabulary)
    layer = (_count(family, width, 2 * unit, usual, vocabulary) - one) / unit
    outside = one - unit * layer
    if one > 2 * parameters:
        return None
    depth = min(
        range(1, 2 + int(parameters / layer / unit)), key=lambda n: abs(outside + n * unit * layer - parameters)
    )
    layers, mlp = depth * unit, 0
    if family.mlp:
        more = (_count(family, width, unit, usual + step, vocabulary) - one) / unit
        mlp = max(step, usual + step * round((parameters - outside - layers * layer) / (layers * more)))
    return Size(family.name, width, layers, mlp, vocabulary, _count(family, width, layers, mlp, vocabulary))


def _count(family: Family, width: int, layers: int, mlp: int, vocabulary: int) -> int:
    """Parameters, those that are tied once; no weight is made."""
    with torch.device("meta"):
        model = family.build(width, layers, mlp, vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())
