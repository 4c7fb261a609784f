"""HybridLMConfig: everything that decides the shape of a model, and nothing that belongs to its training.

Departures from a stock transformers configuration: the stack is one string, `pattern`, from which the number and kinds
of the layers follow (`num_hidden_layers`, `block_types` and `layer_types` are properties); a keyword that nobody knows
is refused instead of kept; every problem found is reported at once, as a ValueError. Widths left at None follow
`hidden_size`, through properties, so that they never go stale.
"""

from .versions_hybridlm import REQUIREMENT  # noqa: F401  # isort: skip  before anything that another release lacks
import math
from difflib import get_close_matches
from functools import wraps
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.utils import logging

from .code_hybridlm import copy_code, names_our_classes, with_our_classes
from .indexscan_hybridlm import MOST_STATES
from .mixers_hybridlm import ATTENTION, MIXERS, RECURRENT_LAYER, STANDALONE, check_carried
from .pattern_hybridlm import parse

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
"""Version of the fields in config.json; a higher one in a checkpoint means that a newer hybridlm wrote it."""

# What PreTrainedConfig itself takes beside its fields, and what it writes into config.json.
_BASE_KEYWORDS = {
    "_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_experts_implementation",
    "_experts_implementation_internal", "_name_or_path", "_output_attentions", "_post_init_done", "attn_implementation",
    "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "quantization_config", "rope_scaling", "rope_theta", "tie_last_hidden_states", "torch_dtype",
    "transformers_weights",
}  # fmt: skip
_FROM_PATTERN = {"num_hidden_layers", "num_layers", "layer_types", "block_types"}


def _raises_value_error(cls):
    """Strict dataclasses raise an Exception of their own; users and `except ValueError` expect a ValueError."""
    init = cls.__init__

    @wraps(init)
    def __init__(self, *args, **kwargs):
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            cause = error.__cause__
            if isinstance(cause, ValueError):
                raise cause from None
            raise ValueError(f"HybridLMConfig: {error}".replace("\n    TypeError:", "")) from None

    cls.__init__ = __init__
    return cls


@_raises_value_error
@strict
class HybridLMConfig(PreTrainedConfig):
    r"""Configuration of a hybrid language model. Keyword arguments only.

    Stack
        pattern: the layers, e.g. `"(rglru bmru)*6"`, `"lru*2 bmru attention"`, `"rglru+bmru"` (side by side in one
        layer).
        vocab_size: number of tokens.
        hidden_size (D): width of the residual stream.
        state_size (N): width of the recurrences; None: hidden_size.
        intermediate_size: width of the SwiGLU MLP; None: 8/3 hidden_size rounded up to a multiple of 32; 0: no MLP.
        conv_kernel: taps of the short causal convolution in front of the cells; 0: none.
        input_skip: add d * v to what cells emit for v; d is learned for each channel, and 1 at the start.
        output_gate: multiply what the cells emit with silu(W_g u).
        tie_word_embeddings: the output projection is the embedding.
    Attention and gates
        num_attention_heads: heads of `attention`, and blocks of the block-diagonal gates of `rglru`.
        num_key_value_heads: grouped-query attention; None: num_attention_heads.
        max_position_embeddings: the length that RoPE scaling and evaluation tools assume; no cell is limited by it.
        rope_parameters: transformers' RoPE dictionary (`rope_type`, `rope_theta`, ...).
        sliding_window: tokens that `sliding_attention` sees, the present one included; at least 2, as transformers'
        caches need.
        attention_dropout: probability.
    Recurrences
        decay_min, decay_max: range of |decay| at the start, for `lru` (r_min, r_max) and `rglru`.
        phase_max: largest phase of `lru` at the start, in radians.
        threshold_init: b_beta, the threshold of memory units at the start.
        threshold_low, threshold_high: beta_lo and beta_hi, the fixed thresholds of `fqbmru`.
        amplitude_init: alpha, the amplitude of memory units at the start.
        surrogate_slope: k of the surrogate gradients.
        learn_initial_state: s_0 of `bmru` is learned through the sign function, instead of drawn once and kept.
        nfsm_heads (K): heads of `nfsm`; each emits N / K numbers.
        nfsm_states (n): states of each of them; the map to its transitions has n^2 outputs.
        nfsm_temperature (nu): divides their logits, in the noise and the gradient of training.
        mamba_expand: width of `mamba2` over hidden_size.
        mamba_d_head: width of a head of `mamba2`.
        mamba_d_state: size of the state of each channel of `mamba2`.
        mamba_n_groups: groups of heads of `mamba2` that have B and C of their own.
    Other
        classifier_dropout: probability, in front of the sequence and token classification heads.
        rms_norm_eps: added to the mean square in every norm.
        initializer_range: standard deviation of the embeddings at the start.
        use_cache: whether a forward that is not told returns a cache.
        pad_token_id, bos_token_id, eos_token_id: special tokens; None: there is none.

    Raises ValueError that lists every problem with field, value and what is allowed.
    """

    model_type = "hybridlm"
    keys_to_ignore_at_inference = ["past_key_values"]

    pattern: str = "(rglru bmru)*6"
    vocab_size: int = 32000
    hidden_size: int = 512
    state_size: int | None = None
    intermediate_size: int | None = None
    conv_kernel: int = 4
    input_skip: bool = False
    output_gate: bool = True
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    rope_parameters: RopeParameters | dict | None = None
    sliding_window: int = 1024
    attention_dropout: int | float = 0.0
    classifier_dropout: int | float = 0.0
    decay_min: float = 0.9
    decay_max: float = 0.999
    phase_max: float = 2 * math.pi
    threshold_init: int | float = 1.0
    threshold_low: int | float = 0.5
    threshold_high: int | float = 1.5
    amplitude_init: int | float = 1.0
    surrogate_slope: int | float = 1.0
    learn_initial_state: bool = False
    nfsm_heads: int = 8
    nfsm_states: int = 8
    nfsm_temperature: int | float = 0.5
    mamba_expand: int | float = 2
    mamba_d_head: int = 64
    mamba_d_state: int = 128
    mamba_n_groups: int = 1
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        unknown = sorted(set(kwargs) - _known_keywords(type(self)))
        if unknown:
            raise ValueError(_unknown_message(type(self), unknown))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._check_base(self.dtype if self.dtype is not None else kwargs.get("torch_dtype"))
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            said = ", ".join(f"{name}={value!r:.100}" for name, value in kwargs.items()) or "a field"
            raise ValueError(f"HybridLMConfig: transformers cannot use {said} ({error}).") from None

    def _check_base(self, dtype: Any):
        """Fields of every configuration of which transformers makes something before it looks at them."""
        named, labels, classes = getattr(torch, str(dtype), dtype), self.id2label, self.architectures
        if named is not None and not isinstance(named, torch.dtype):
            raise ValueError(f"HybridLMConfig: dtype={dtype!r}: must be the name of a torch dtype, as float32.")
        if labels is not None and not (isinstance(labels, dict) and all(_whole(key) for key in labels)):
            raise ValueError(f"HybridLMConfig: id2label={labels!r:.200}: must be labels by their whole numbers.")
        if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ValueError(f"HybridLMConfig: architectures={classes!r:.200}: must be a list of names of classes.")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, but a ValueError where config.json is no JSON object."""
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, KeyError, RecursionError, TypeError) as error:
            raise ValueError(f"{pretrained_model_name_or_path}: its config.json is no JSON object ({error}).") from None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, but fields written by a newer hybridlm are named in a warning and left out, and other
        unknown ones refused."""
        if not isinstance(config_dict, dict):
            raise ValueError(f"HybridLMConfig: config.json holds {type(config_dict).__name__}, not fields by name.")
        fields = dict(config_dict)
        unknown = sorted(set(fields) - _known_keywords(cls) - set(cls.__dataclass_fields__))
        version = fields.get("format_version", FORMAT_VERSION)
        if unknown and isinstance(version, int) and version > FORMAT_VERSION:
            logger.warning(
                f"This checkpoint was written by a newer hybridlm (format {version}; this one knows {FORMAT_VERSION}). "
                f"Left out, since unknown here: {', '.join(unknown)}. Upgrade hybridlm if the model behaves "
                f"differently."
            )
            for name in unknown:
                del fields[name]
            fields["format_version"] = FORMAT_VERSION
        return super().from_dict(fields, **kwargs)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; where `auto_map` names classes of ours, all of their code is written beside it."""
        if names_our_classes(getattr(self, "auto_map", None)):
            check_carried(self.block_types)
            self.auto_map = with_our_classes(self.auto_map)
            copy_code(save_directory)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @PreTrainedConfig.num_labels.setter  # pyright: ignore[reportAttributeAccessIssue]
    def num_labels(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"HybridLMConfig: num_labels={number}: must be at least 1.")
        PreTrainedConfig.num_labels.fset(self, number)  # pyright: ignore[reportOptionalCall]

    @property
    def block_types(self) -> tuple[str, ...]:
        """The layers in depth order, each a mixer's name or `"a+b"`."""
        return parse(self.pattern, MIXERS, STANDALONE)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the stack, as the pattern has them."""
        return len(self.block_types)

    @property
    def layer_types(self) -> list[str]:
        """What transformers' caches and masks call the layers."""
        return [MIXERS[block].layer_type if block in STANDALONE else RECURRENT_LAYER for block in self.block_types]

    @property
    def head_dim(self) -> int:
        """Width of an attention head: hidden_size / num_attention_heads."""
        return self.hidden_size // self.num_attention_heads

    @property
    def recurrence_size(self) -> int:
        """N: `state_size`, or `hidden_size` where it is None."""
        return self.hidden_size if self.state_size is None else self.state_size

    @property
    def mamba_inner_size(self) -> int:
        """Width of `mamba2` inside: `mamba_expand` * hidden_size."""
        return int(self.mamba_expand * self.hidden_size)

    @property
    def mlp_size(self) -> int:
        """`intermediate_size`, or 8/3 hidden_size rounded up to a multiple of 32 where it is None."""
        return 32 * math.ceil(self.hidden_size / 12) if self.intermediate_size is None else self.intermediate_size

    @property
    def residual_scale(self) -> float:
        """1 / sqrt(2 layers): maps back into the residual stream start smaller by it, so that its variance stays near
        1."""
        return (2 * self.num_hidden_layers) ** -0.5

    def validate_layer_type(self):
        """The layers come from the pattern, which is checked below; transformers' list of names does not know ours."""

    def validate_rope(self):
        """As in transformers, which raises a KeyError for a missing entry, and mostly does not say of which field."""
        try:
            super().validate_rope()
        except (KeyError, TypeError, ValueError) as error:
            said = error.args[0] if error.args else error
            raise ValueError(f"HybridLMConfig: rope_parameters={self.rope_parameters!r}: {said}") from None

    def validate_architecture(self):
        blocks = self.block_types  # a ValueError of its own where the pattern is wrong
        names = {name for block in blocks for name in block.split("+")}
        problems = [
            f"{field}={value!r}: must be {allowed}" for field, value, allowed, good in self._ranges(names) if not good
        ]
        if problems:
            raise ValueError("HybridLMConfig: " + "; ".join(problems) + ".")

    def _ranges(self, names: set[str]):
        """(field, value, what is allowed, whether it holds); checks of a mixer only where the pattern uses it."""
        D, N, heads, kv = (
            self.hidden_size,
            self.recurrence_size,
            self.num_attention_heads,
            self.num_key_value_heads or 0,
        )
        for field in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            yield field, getattr(self, field), "at least 1", getattr(self, field) >= 1
        yield "state_size", self.state_size, "None or at least 1", N >= 1
        yield "intermediate_size", self.intermediate_size, "None or at least 0", self.mlp_size >= 0
        yield "conv_kernel", self.conv_kernel, "at least 0", self.conv_kernel >= 0
        yield "decay_min", self.decay_min, f"in (0, decay_max={self.decay_max})", 0 < self.decay_min < self.decay_max
        yield "decay_max", self.decay_max, "in (0, 1)", 0 < self.decay_max < 1
        yield "phase_max", self.phase_max, "in (0, 2 pi]", 0 < self.phase_max <= 2 * math.pi
        for field in ("threshold_init", "initializer_range"):
            yield field, getattr(self, field), "at least 0 and finite", 0 <= getattr(self, field) < math.inf
        for field in ("surrogate_slope", "nfsm_temperature", "mamba_expand", "rms_norm_eps"):
            yield field, getattr(self, field), "above 0 and finite", 0 < getattr(self, field) < math.inf
        low, high = self.threshold_low, self.threshold_high
        yield "threshold_low", low, f"in (0, threshold_high={high})", 0 < low < high
        yield "threshold_high", high, "finite", math.isfinite(high)
        yield "amplitude_init", self.amplitude_init, "finite", math.isfinite(self.amplitude_init)
        yield "sliding_window", self.sliding_window, "at least 2", self.sliding_window >= 2
        yield "id2label", self.id2label, "None, or name at least one label", self.id2label != {}
        for field in ("attention_dropout", "classifier_dropout"):
            yield field, getattr(self, field), "in [0, 1)", 0 <= getattr(self, field) < 1
        if "mamba2" in names and 0 < self.mamba_expand < math.inf:
            yield from self._mamba_ranges()
        if "nfsm" in names:
            yield from self._nfsm_ranges()
        if heads < 1 or kv < 1:
            return
        if names & set(ATTENTION):
            yield (
                "hidden_size",
                D,
                f"a multiple of 2 * num_attention_heads = {2 * heads}, for attention with RoPE",
                D % (2 * heads) == 0,
            )
            yield "num_attention_heads", heads, f"a multiple of num_key_value_heads={kv}", heads % kv == 0
            yield from self._rope_ranges()
        if "rglru" in names:
            field = "hidden_size" if self.state_size is None else "state_size"
            yield (
                field,
                N,
                f"a multiple of num_attention_heads={heads}, for the block-diagonal gates of rglru",
                N % heads == 0,
            )

    def _nfsm_ranges(self):
        K, n, N = self.nfsm_heads, self.nfsm_states, self.recurrence_size
        yield "nfsm_heads", K, "at least 1", K >= 1
        yield "nfsm_states", n, f"from 2 to {MOST_STATES}", 2 <= n <= MOST_STATES
        if K >= 1:
            field = "hidden_size" if self.state_size is None else "state_size"
            yield field, N, f"a multiple of nfsm_heads={K}, for the values of nfsm", N % K == 0

    def _rope_ranges(self):
        rope: Any = self.rope_parameters or {}
        if self.nested_rope_parameter_keys(rope):
            yield "rope_parameters", rope, "one dictionary for all layers, as {'rope_theta': 10000.0}", False
            return
        known = sorted({"default", *ROPE_INIT_FUNCTIONS})
        kind = rope.get("rope_type", "default")
        yield "rope_parameters['rope_type']", kind, f"one of {', '.join(known)}", kind in known
        for field in sorted({"rope_theta", "factor"} & set(rope)):
            value = rope[field]
            yield f"rope_parameters[{field!r}]", value, "above 0 and finite", _number(value) and 0 < value < math.inf
        if "partial_rotary_factor" in rope:
            share = rope["partial_rotary_factor"]
            good = _number(share) and 0 < share <= 1
            yield "rope_parameters['partial_rotary_factor']", share, "in (0, 1]", good
            if good:
                allowed = f"a share that turns an even number of a head's {self.head_dim} channels, at least 2"
                turned = int(self.head_dim * share)
                yield "rope_parameters['partial_rotary_factor']", share, allowed, turned >= 2 and turned % 2 == 0

    def _mamba_ranges(self):
        inner, head, groups = self.mamba_inner_size, self.mamba_d_head, self.mamba_n_groups
        for field in ("mamba_d_head", "mamba_d_state", "mamba_n_groups"):
            yield field, getattr(self, field), "at least 1", getattr(self, field) >= 1
        yield "mamba_expand", self.mamba_expand, f"at least 1 / hidden_size = 1 / {self.hidden_size}", inner >= 1
        if head >= 1 and groups >= 1:
            yield (
                "mamba_d_head",
                head,
                f"a divisor of mamba_expand * hidden_size = {inner}, with a multiple of mamba_n_groups={groups} heads",
                inner % head == 0 and (inner // head) % groups == 0,
            )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10)


def _known_keywords(cls) -> set[str]:
    return _BASE_KEYWORDS | set(GenerationConfig._get_default_generation_params())


def _unknown_message(cls, unknown: list[str]) -> str:
    allowed = sorted(set(cls.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))
    parts = []
    for name in unknown:
        close = get_close_matches(name, allowed, n=1)
        if name in _FROM_PATTERN:
            parts.append(f"{name!r} follows from the pattern, and cannot be set; write e.g. pattern='(rglru bmru)*6'")
        else:
            parts.append(f"{name!r} is not a field" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return f"HybridLMConfig: {'; '.join(parts)}. The fields are {', '.join(allowed)}."
