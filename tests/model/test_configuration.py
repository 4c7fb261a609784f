"""HybridLMConfig: what follows from the pattern, and that nothing unknown or impossible gets in."""

import dataclasses
import json
import logging
import math

import pytest
from transformers import AutoConfig

from hybridlm import HybridLMConfig
from hybridlm.model.attention_hybridlm import HybridLMRotaryEmbedding


def test_the_stack_follows_from_the_pattern():
    config = HybridLMConfig(pattern="(rglru bmru)*2 attention", hidden_size=64, num_attention_heads=4)
    assert config.block_types == ("rglru", "bmru", "rglru", "bmru", "attention")
    assert config.num_hidden_layers == 5
    assert config.layer_types == ["hybridlm_linear_attention"] * 4 + ["full_attention"]
    assert (config.head_dim, config.recurrence_size, config.mlp_size) == (16, 64, 192)
    config.pattern = "lru"
    config.hidden_size = 96
    assert (config.num_hidden_layers, config.recurrence_size, config.mlp_size) == (1, 96, 256)
    assert "num_hidden_layers" not in config.to_dict()


def test_it_survives_a_file(tmp_path):
    config = HybridLMConfig(
        pattern="lru+bmru attention", vocab_size=99, hidden_size=24, state_size=12, num_attention_heads=2,
        intermediate_size=0,
        conv_kernel=0, output_gate=False, input_skip=True, threshold_init=0.5, learn_initial_state=True, bos_token_id=1,
        eos_token_id=[1, 2],
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for loaded in (HybridLMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, HybridLMConfig)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert HybridLMConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"hiden_size": 64}, "'hiden_size' is not a field .did you mean 'hidden_size'"),
        ({"num_hidden_layers": 4}, "'num_hidden_layers' follows from the pattern"),
        ({"layer_types": ["x"]}, "'layer_types' follows from the pattern"),
        ({"pattern": "rglru bmur"}, "did you mean 'bmru'"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": 65, "num_attention_heads": 8}, "hidden_size=65: must be a multiple of num_attention_heads=8"),
        ({"pattern": "attention", "hidden_size": 24, "num_attention_heads": 8}, "for attention with RoPE"),
        ({"pattern": "attention", "num_key_value_heads": 3}, "multiple of num_key_value_heads=3"),
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be at least 1"),
        ({"decay_min": 0.99, "decay_max": 0.9}, "decay_min=0.99"),
        ({"conv_kernel": -1, "surrogate_slope": 0.0}, "conv_kernel=-1.*surrogate_slope=0.0"),
        ({"sliding_window": 1}, "sliding_window=1: must be at least 2"),
        ({"num_labels": 0}, "num_labels=0: must be at least 1"),
        ({"num_labels": -1}, "num_labels=-1: must be at least 1"),
        ({"id2label": {}}, "id2label={}: must be None, or name at least one label"),
    ],
)
def test_bad_values_are_value_errors_that_name_the_field(keywords, message):
    with pytest.raises(ValueError, match=message):
        HybridLMConfig(**keywords)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(HybridLMConfig) if "float" in str(field.type)]
)
def test_every_number_is_finite(field, value):
    """Whatever the pattern; `mamba_expand` decides a width, which is computed with it."""
    for pattern in ("lru", "mamba2"):
        with pytest.raises(ValueError, match=rf"{field}={value}: must be "):
            HybridLMConfig(pattern=pattern, **{field: value})


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "nonsense"}, r"\['rope_type'\]='nonsense': must be one of default, dynamic, linear"),
        ({"rope_type": "linear"}, r"rope_parameters=.*Missing required keys .*'factor'"),
        ({"rope_type": "linear", "factor": "4"}, r"rope_parameters\['factor'\]='4': must be above 0 and finite"),
        ({"rope_theta": -1.0}, r"rope_parameters\['rope_theta'\]=-1.0: must be above 0 and finite"),
        ({"full_attention": {"rope_theta": 1e4}}, "must be one dictionary for all layers"),
        ({"partial_rotary_factor": "a"}, r"\['partial_rotary_factor'\]='a': must be in \(0, 1\]"),
        ({"partial_rotary_factor": 1.5}, r"\['partial_rotary_factor'\]=1.5: must be in \(0, 1\]"),
        ({"partial_rotary_factor": 0.1}, r"=0.1: must be a share that turns an even number of a head's 8 channels, at"),
        ({"partial_rotary_factor": 0.4}, "=0.4: must be a share that turns an even number"),  # 3, which would turn 4
    ],
)
def test_positions_that_cannot_be_computed(rope, message):
    with pytest.raises(ValueError, match=message):
        HybridLMConfig(pattern="attention", hidden_size=32, num_attention_heads=4, rope_parameters=rope)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1, 0.6])
def test_as_many_channels_turn_as_the_configuration_says(share):
    rope = {"rope_theta": 100.0, "partial_rotary_factor": share}
    config = HybridLMConfig(pattern="attention", hidden_size=32, num_attention_heads=4, rope_parameters=rope)
    frequencies = HybridLMRotaryEmbedding(config).inv_freq
    assert 2 * len(frequencies) == int(8 * share)
    assert frequencies.isfinite().all()


def test_labels_are_at_least_one_also_in_what_is_loaded(tmp_path):
    HybridLMConfig().save_pretrained(tmp_path)
    assert HybridLMConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5
    with pytest.raises(ValueError, match="num_labels=0: must be at least 1"):
        HybridLMConfig.from_pretrained(tmp_path, num_labels=0)


def test_heads_matter_only_where_they_are_used():
    HybridLMConfig(pattern="bmru lru", hidden_size=30, num_attention_heads=8)


def test_an_unknown_field_in_a_file(tmp_path, caplog):
    HybridLMConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text()) | {"wormhole": 3}
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="'wormhole' is not a field"):
        HybridLMConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps(fields | {"format_version": 99}))
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        config = HybridLMConfig.from_pretrained(tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "newer hybridlm" in caplog.text
    assert "wormhole" in caplog.text
    assert not hasattr(config, "wormhole")
    assert config.format_version == 1


def test_overrides_at_loading(tmp_path):
    HybridLMConfig().save_pretrained(tmp_path)
    assert HybridLMConfig.from_pretrained(tmp_path, hidden_size=256).hidden_size == 256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id2label", ["a"]),
        ("id2label", {"a": "b"}),
        ("id2label", 3),
        ("dtype", "nn"),
        ("dtype", "half precision"),
        ("dtype", [None]),
        ("dtype", {"": "float32"}),
        ("architectures", 1.0),
        ("architectures", [[]]),
    ],
)
def test_fields_of_every_configuration(field, value):
    """transformers makes something of them before anything is checked."""
    with pytest.raises(ValueError, match=rf"HybridLMConfig: {field}="):
        HybridLMConfig(**{field: value})


@pytest.mark.parametrize("text", ["null", "3", "[]", '"x"', "[[1, 2]]", "[" * 100_000])
def test_a_file_that_is_no_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        HybridLMConfig.from_pretrained(tmp_path)
