"""transformers' model tests, applied to hybridlm: the tester, and the few tests that are replaced, each with what it
tests instead and why.

Imported only where the tests have been fetched (fetch.py).
"""

import contextlib
import copy
import inspect
import re
import sys
import tempfile
import warnings
from typing import Unpack
from unittest import mock

import fetch
import torch
from transformers.utils import TransformersKwargs

from hybridlm import (
    HybridLMConfig,
    HybridLMForCausalLM,
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
    HybridLMModel,
)

sys.path.insert(0, str(fetch.FOLDER))  # ranks that the tests start get this path too

from upstream_tests import test_fsdp_mixin, test_modeling_common
from upstream_tests.test_configuration_common import ConfigTester
from upstream_tests.test_training_mixin import TrainingTesterMixin

# The tests look up in transformers' tables which head a class is. Only their own references to the tables are
# exchanged: transformers would look for a module of its own behind a new entry.
_TABLES = {
    "MODEL_MAPPING_NAMES": HybridLMModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": HybridLMForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": HybridLMForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": HybridLMForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": HybridLMForQuestionAnswering,
}
for table, model_class in _TABLES.items():
    names = {**getattr(test_modeling_common, table), HybridLMConfig.model_type: model_class.__name__}
    setattr(test_modeling_common, table, names)

test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None  # it holds some of transformers' own models, to save time
# The tests want a core for each rank. Ranks of models this small share cores, so the same tests run on any machine.
test_fsdp_mixin._get_available_fsdp_workers = lambda: 4


def _large_norm_eps(config) -> None:
    """transformers' own function sets every name that a norm's epsilon has anywhere; we refuse those we do not know."""
    config.rms_norm_eps = 1.0


test_modeling_common.set_config_for_less_flaky_test = _large_norm_eps

_takes_rope = test_modeling_common._config_supports_rope_scaling
_eager_matches_sdpa = test_modeling_common._test_eager_matches_sdpa_inference


def _config_supports_rope_scaling(config) -> bool:
    """transformers asks whether there are `rope_parameters`; ours are of use where there is attention."""
    return "attention" in config.pattern and _takes_rope(config)


def _eager_matches_sdpa_inference(test, *args, **kwargs):
    """The same, told that `forward` takes output_attentions: it looks for an annotation of **kwargs."""
    with contextlib.ExitStack() as stack:
        for model_class in test.all_model_classes:
            signature = inspect.signature(model_class.forward)
            parameters = dict(signature.parameters)
            parameters["kwargs"] = parameters["kwargs"].replace(annotation=Unpack[TransformersKwargs])
            stated = signature.replace(parameters=list(parameters.values()))
            stack.enter_context(mock.patch.object(model_class.forward, "__signature__", stated, create=True))
        _eager_matches_sdpa(test, *args, **kwargs)


test_modeling_common._config_supports_rope_scaling = _config_supports_rope_scaling
test_modeling_common._test_eager_matches_sdpa_inference = _eager_matches_sdpa_inference


ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}


class ModelTester:
    """What the tests ask for: a small configuration, and inputs for it."""

    base_model_class = HybridLMModel
    causal_lm_class = HybridLMForCausalLM
    config_class = HybridLMConfig

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.is_training = True
        self.batch_size, self.seq_length = 5, 7
        self.vocab_size, self.hidden_size, self.intermediate_size = 99, 32, 64
        self.num_attention_heads, self.num_key_value_heads = 4, 2
        self.num_hidden_layers = self.get_config().num_hidden_layers

    def get_config(self) -> HybridLMConfig:
        return HybridLMConfig(
            pattern=self.pattern,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=64,
            rope_parameters=ROPE if "attention" in self.pattern else None,
            threshold_init=0.4,  # units both write and hold
            sliding_window=16,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self):
        """One row of the batch is padded on the left, one on the right."""
        shape = (self.batch_size, self.seq_length)
        attention_mask = torch.ones(shape, dtype=torch.long)
        attention_mask[1, :3] = attention_mask[2, -2:] = 0
        input_ids = torch.randint(3, self.vocab_size, shape)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


class HybridLMSuite(test_modeling_common.ModelTesterMixin, TrainingTesterMixin):
    """transformers' tests for one pattern: `class T(HybridLMSuite, unittest.TestCase): pattern = "..."`. Those of FSDP,
    each of which starts two to four processes, are in `ShardedSuite`.

    Left out: TensorParallelTesterMixin and ExpertParallelTesterMixin, for plans that the configuration does not have;
    PipelineTesterMixin, whose every test loads a model from the Hub.
    """

    pattern: str
    model_tester = None
    test_can_init_all_missing_weights_before_2023 = True  # without a copyright year, a model counts as old
    all_model_classes = (
        HybridLMModel,
        HybridLMForCausalLM,
        HybridLMForSequenceClassification,
        HybridLMForTokenClassification,
        HybridLMForQuestionAnswering,
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.has_attentions = "attention" in getattr(cls, "pattern", "")

    def setUp(self):
        self.model_tester = ModelTester(self.pattern)
        self.config_tester = ConfigTester(self, config_class=HybridLMConfig, hidden_size=32)

    @staticmethod
    def _prepare_config_headdim(config, requested_dim):
        """For kernels that want wide heads: transformers sets `head_dim`, which follows from other fields here."""
        config = copy.deepcopy(config)
        config.hidden_size = config.num_attention_heads * max(config.head_dim, requested_dim)
        config.attention_dropout = 0.0
        return config

    def _get_tiny_config(self):
        """For the tests with ranks, which sum in another order than one process does: a candidate that equals its
        threshold up to rounding may then write in one and hold in the other (seen: 1 in 131,072). A small amplitude
        keeps what one write moves below their tolerance of 1e-5 (seen: 1.2e-6, and 3.9e-4 at amplitude 1)."""
        config_class, fields = super()._get_tiny_config()
        return config_class, fields | {"amplitude_init": 1e-3}

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_generation_tester_mixin_inheritance(self):
        self.skipTest("the archive does not hold GenerationTesterMixin")

    def test_attention_outputs(self):
        """The same test, which takes every layer for an attention layer: here there are as many as the pattern has."""
        attention = [kind for kind in self.model_tester.get_config().layer_types if "linear" not in kind]
        with mock.patch.object(self.model_tester, "num_hidden_layers", len(attention)):
            super().test_attention_outputs()

    def test_init_weights_can_init_buffers(self):
        """Buffers of a model that was made on `meta` are filled by `_init_weights`. transformers compares with a model
        whose `_init_weights` was left out; s_0 of `bmru` is drawn there, so both models draw from the same seed."""
        for model_class in self.all_model_classes:
            config = self.model_tester.get_config()
            with test_modeling_common.seeded_weight_init():
                made = dict(model_class(copy.deepcopy(config)).named_buffers())
                with torch.device("meta"):
                    model = model_class(copy.deepcopy(config))
                model.to_empty(device="cpu")
                for buffer in model.buffers():
                    buffer.fill_(float("nan"))
                model.init_weights()
            filled = dict(model.named_buffers())
            assert made.keys() == filled.keys(), model_class.__name__
            for name, buffer in made.items():
                assert torch.equal(buffer, filled[name]), f"{model_class.__name__}: {name}"

    def test_model_rope_with_partial_rotation(self):
        """The same test, which asks only that a part of a head can be turned; and that it is another part."""
        super().test_model_rope_with_partial_rotation()
        input_ids, states = torch.arange(10).unsqueeze(0), []
        for share in (1.0, 0.5):
            config = self.model_tester.get_config()
            config.rope_parameters = {**ROPE, "partial_rotary_factor": share}
            torch.manual_seed(0)
            states.append(HybridLMModel(config).eval()(input_ids).last_hidden_state)
        assert not torch.allclose(*states, atol=1e-5)

    def test_sliding_window_mask(self):
        """The window is a kind of layer here, not the switch `use_sliding_window` that transformers' test turns."""
        if "sliding_attention" not in self.pattern:
            self.skipTest("the pattern has no sliding_attention")
        window, length = 3, self.model_tester.seq_length
        distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
        outside = (distance >= window) | (distance < 0)
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        for pattern, sees_past in ((self.pattern, False), (self.pattern.replace("sliding_", ""), True)):
            fields = config.to_diff_dict() | {"pattern": pattern, "sliding_window": window}
            for model_class in self.all_model_classes:
                model = model_class._from_config(HybridLMConfig(**fields), attn_implementation="eager").eval()
                (attention,) = model(**inputs, output_attentions=True).attentions
                assert bool((attention[:, :, outside] != 0).any()) == sees_past, model_class.__name__

    def test_disk_offload_safetensors(self):
        """transformers' test fills an accelerator, then the CPU, then the disk. Here the first layer, and then all, lie
        on the disk and are read for their call; the rest is on the CPU."""
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).eval()
            names = [name for name, _ in model.named_modules() if name not in ("model", "layers", "model.layers")]
            parts = [name for name in names if re.fullmatch(r"(model\.)?(layers\.\d+|\w+)", name)]
            first = next(name for name in parts if name.endswith("layers.0"))
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                for on_disk in (first, ""):
                    places = {part: "disk" if part.startswith(on_disk) else "cpu" for part in parts}
                    offloaded = model_class.from_pretrained(folder, device_map=places, offload_folder=folder)
                    away = {name for name, weight in offloaded.named_parameters() if weight.device.type == "meta"}
                    assert away, f"{model_class.__name__}: nothing is on the disk"
                    assert all(name.startswith(on_disk) for name in away), f"{model_class.__name__}: {away}"
                    expected, seen = model(**inputs)[0], offloaded(**inputs)[0]
                    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)

    def test_flex_attention_with_grads(self):
        """transformers' test compiles flex attention and asks for gradients: both it has on accelerators alone. Here it
        runs as it is written, without gradients, and gives what sdpa gives where nothing is padding."""
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config, outputs = self._prepare_config_headdim(config, 16), []
            model = model_class(config).eval()
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about transformers' call, the plain path, what torch loads for it
                for kind in ("sdpa", "flex_attention"):
                    model.set_attn_implementation(kind)
                    assert model.config._attn_implementation == kind
                    outputs.append(model(**inputs)[0])
            sdpa, flex = outputs
            if flex.shape[:2] == inputs["input_ids"].shape:
                sdpa, flex = (output[inputs["attention_mask"].bool()] for output in outputs)
            torch.testing.assert_close(flex, sdpa, rtol=1e-4, atol=1e-5)

    def test_torch_compile_for_training(self):
        """transformers' test, which runs on an accelerator, through the tracers alone: one graph, equal gradients."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs["position_ids"] = torch.arange(self.model_tester.seq_length).unsqueeze(0)
        inputs |= {"labels": inputs["input_ids"], "use_cache": False}
        model = HybridLMForCausalLM(config)
        loss = model(**inputs).loss
        loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        model.zero_grad()
        torch.compiler.reset()
        with warnings.catch_warnings():
            # The tracer makes an object of each autograd.Function that it meets, which torch itself warns of.
            warnings.filterwarnings("ignore", ".*Function'> should not be instantiated", DeprecationWarning)
            compiled_loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
        compiled_loss.backward()
        torch.testing.assert_close(compiled_loss, loss)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-4)


class ShardedSuite(HybridLMSuite, test_fsdp_mixin.FSDPTesterMixin):
    """The same, with the tests of FSDP."""
