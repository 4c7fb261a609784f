"""Checkpoints of other model classes turned into ours, with the same numbers.

    transformers' Mamba-2     pattern "mamba2*L", no MLP

What such a checkpoint has and ours cannot express (biases of the projections, another activation, clipped step sizes,
weights of another name) is refused, not dropped; a missing weight too. Where the model came from is written beside it,
for its card.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, Mamba2ForCausalLM

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import locate, quiet_transformers, read_config
from hybridlm.evaluation.origin import Origin, write_origin
from hybridlm.files import expanded, try_folder, write_folder
from hybridlm.safe_loading import FAULTS, NO_CODE, SAFETENSORS, check_weights

_RENAMED = {
    "backbone.embeddings.weight": "model.embed_tokens.weight",
    "backbone.norm_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_RENAMED_IN_LAYER = {
    "norm.weight": "mixer_norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.norm.weight": "mixer.norm.weight",
    "mixer.conv1d.weight": "mixer.conv.weight",
    "mixer.conv1d.bias": "mixer.conv.bias",
    "mixer.A_log": "mixer.cell.A_log",
    "mixer.D": "mixer.cell.D",
    "mixer.dt_bias": "mixer.cell.dt_bias",
}


def from_mamba2(source: Mamba2ForCausalLM | str | Path) -> HybridLMForCausalLM:
    """The same language model as transformers' Mamba-2: `source` is a model, a folder, or OWNER/MODEL on the Hub.

    Logits agree up to fp32 rounding. In bf16 they differ more: transformers keeps the residual stream in fp32 there,
    this model does not. Returns a model in evaluation mode, in the dtype of the source. Raises UserError for what is no
    Mamba-2 in transformers' format, and for settings that have no counterpart.
    """
    reference = source if isinstance(source, Mamba2ForCausalLM) else _load(source)
    # The model, not its configuration, knows: transformers unties what a file holds as two weights.
    tied = reference.lm_head.weight is reference.backbone.embeddings.weight
    config = _config(reference.config, tied)
    model = HybridLMForCausalLM(config)
    model.to(dtype=reference.dtype)  # pyright: ignore[reportCallIssue]
    weights = {_renamed(name): tensor for name, tensor in reference.state_dict().items()}
    for name, tensor in weights.items():
        if name.endswith("conv.weight"):
            weights[name] = tensor.squeeze(1)
    if not reference.config.use_conv_bias:
        weights |= {
            name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.endswith("conv.bias")
        }
    model.load_state_dict(weights)
    if reference.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(reference.generation_config.to_dict())
    return model.eval()


def convert_mamba2(source: str | Path, out: str | Path) -> Path:
    """Writes the converted checkpoint, with the tokenizer of the source where it has one, as the new folder `out`."""
    out = expanded(out)
    if out.exists():
        raise UserError(f"out {out}: it exists already. Give a folder that does not, or remove it.")
    try:
        try_folder(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    model = from_mamba2(source)
    tokenizer = _tokenizer(source)
    origin = Origin(str(source), not Path(locate(source)).is_dir())

    def fill(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_origin(folder, origin)

    try:
        write_folder(out, fill)
    except OSError as error:
        raise _unwritable(out, error) from None
    return out


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"out {out}: cannot be written ({error.strerror}). Give a folder that can be.")


def _load(source: str | Path) -> Mamba2ForCausalLM:
    path = locate(source)
    config = read_config(path, f"checkpoint {source}")
    if config.model_type != "mamba2":
        raise UserError(
            f"checkpoint {source}: its model_type is {config.model_type!r}; 'mamba2' in transformers' format is what "
            "can be converted."
        )
    check_weights(path, f"checkpoint {source}")
    options: Any = {"dtype": "auto", "output_loading_info": True, **SAFETENSORS}
    try:
        with quiet_transformers():
            loaded: Any = Mamba2ForCausalLM.from_pretrained(path, **options)
    except FAULTS as error:
        raise UserError(f"checkpoint {source}: cannot be loaded ({' '.join(str(error).split())[:400]}).") from error
    model, notes = loaded
    if notes["missing_keys"]:  # a tied lm_head.weight is none of them
        raise UserError(
            f"checkpoint {source}: weights are missing ({_some(notes['missing_keys'])}). Give one of a whole "
            "Mamba2ForCausalLM, or copy the folder again."
        )
    if notes["unexpected_keys"]:
        raise UserError(
            f"checkpoint {source}: it has weights that Mamba2ForCausalLM does not know, and that the converted model "
            f"would lack ({_some(notes['unexpected_keys'])}). Give a checkpoint without them."
        )
    return model


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _config(theirs: Any, tied: bool) -> HybridLMConfig:
    limit = tuple(float(x) for x in theirs.time_step_limit)
    problems = [
        f"{field}={getattr(theirs, field)!r}"
        for field, good in (
            ("use_bias", not theirs.use_bias),
            ("hidden_act", theirs.hidden_act in ("silu", "swish")),
            ("time_step_limit", limit == (0.0, math.inf)),
        )
        if not good
    ]
    if problems:
        raise UserError(
            f"this Mamba-2 has {', '.join(problems)}, which `mamba2` here cannot express. What can be converted has "
            "no bias in its projections, silu, and step sizes without limits."
        )
    return HybridLMConfig(
        pattern=f"mamba2*{theirs.num_hidden_layers}",
        vocab_size=theirs.vocab_size,
        hidden_size=theirs.hidden_size,
        intermediate_size=0,
        conv_kernel=theirs.conv_kernel,
        mamba_expand=theirs.expand,
        mamba_d_head=theirs.head_dim,
        mamba_d_state=theirs.state_size,
        mamba_n_groups=theirs.n_groups,
        rms_norm_eps=theirs.layer_norm_epsilon,
        initializer_range=theirs.initializer_range,
        tie_word_embeddings=tied,
        pad_token_id=theirs.pad_token_id,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        dtype=theirs.dtype,
    )


def _renamed(name: str) -> str:
    if name in _RENAMED:
        return _RENAMED[name]
    _, _, index, inner = name.split(".", 3)
    return f"model.layers.{index}.{_RENAMED_IN_LAYER[inner]}"


def _tokenizer(source: str | Path):
    """The tokenizer beside the weights; None where there is none. For want of files transformers makes up one whose
    whole vocabulary is special symbols."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(locate(source), **NO_CODE)
    except FAULTS:
        return None
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None
