"""Exported graphs: torch.export of a whole text and of one step, for any batch, length and device.

Through transformers' own exporter where a cache goes in or out, since it flattens caches; through torch.export alone
for the rest.
"""

import pytest
import torch
from exporting import EXAMPLE, OTHERS, assert_close, check_generation, export_prefill, export_step, padded, small_model
from models import make_ids
from torch.export import Dim
from torch.export.passes import move_to_device_pass
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.model.scan_hybridlm import linear_scan, lru_scan, memory_scan

# transformers' runner reads torch's tree of inputs by an old name; copying such a tree warns of another.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")


STACKS = ["bmru+cmru+mingru attention acmru", "mamba2 lstm+bmru sliding_attention"]
"""Mixers beside one another and behind one another, with attention of both kinds."""


@pytest.mark.parametrize("pattern", [*sorted(MIXERS), *STACKS])
def test_prefill_and_steps_for_any_batch_and_length(pattern):
    """Of stacks, the prefill: their step is exported, slowly, in test_export_programs.py."""
    model, exporter, config = small_model(pattern), DynamoExporter(), DynamoConfig(dynamic=True)
    prefill = export_prefill(model, exporter, config)
    step = export_step(model, exporter, config, prefill) if model.config.num_hidden_layers == 1 else None
    for rows, length in OTHERS:
        check_generation(model, prefill, step, rows, length)


class Logits(torch.nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, position_ids=None, attention_mask=None):
        return self.model(input_ids, attention_mask, position_ids, use_cache=False).logits


ROWS, LENGTH = Dim("rows"), Dim("length")


def export_logits(model, *names):
    """torch.export alone, without a cache."""
    ids = make_ids(*EXAMPLE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["position_ids"] = torch.arange(EXAMPLE[1]).expand(EXAMPLE).contiguous()
    inputs = {name: inputs[name] for name in ("input_ids", *names)}
    axes = {name: {0: ROWS, 1: LENGTH} for name in inputs}
    with torch.no_grad():
        return torch.export.export(Logits(model), (), inputs, dynamic_shapes=axes)


def test_packed_and_padded_rows():
    """Documents that begin anew, by position_ids, with padding on both sides."""
    model = small_model("lru+gru+bmru mamba2 attention", learn_initial_state=True)
    program = export_logits(model, "position_ids", "attention_mask").module()
    for rows, length in [*OTHERS, (2, 70)]:
        ids, mask = padded(rows, length)
        mask[-1, -1] = 0
        positions = torch.arange(length).expand(rows, length) % 4
        with torch.no_grad():
            want = Logits(model)(ids, positions, mask)
            got = program(input_ids=ids, position_ids=positions, attention_mask=mask)
        assert (positions == 0)[mask.bool()].any()
        assert_close(got[mask.bool()], want[mask.bool()])


def test_the_device_of_the_example_can_be_left():
    program = move_to_device_pass(export_logits(small_model("lru attention"), "attention_mask"), "meta")
    ids = make_ids(3, 9).to("meta")
    with torch.no_grad():
        logits = program.module()(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert (logits.device.type, logits.shape[:2]) == ("meta", (3, 9))


def test_the_cast_of_a_narrow_models_cache_is_refused():
    """transformers' exporter casts the example's fp32 states to bf16."""
    model, ids = small_model("lru", dtype=torch.bfloat16), make_ids(*EXAMPLE)
    with torch.no_grad():
        cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"state '0.re' as torch.bfloat16.*model in float32"):
        DynamoExporter().export(model, {"input_ids": ids[:, :1], "past_key_values": cache}, DynamoConfig(dynamic=True))


class Scan(torch.nn.Module):
    """A scan as a function of tensors alone: x (B, T, 3 N) and s_0 (B, 2 N) are cut into what it takes."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, start, reset=None, mask=None):
        a, b, c = x.chunk(3, 2)
        flags = {"reset": reset, "mask": mask}
        if self.name == "linear":
            return linear_scan(a.sigmoid(), b, start.chunk(2, 1)[0], **flags)
        if self.name == "memory":
            reset_state = c[0, 0].sign() if reset is not None else None
            return memory_scan(a, b.abs(), start.chunk(2, 1)[0], epsilon=0.5, reset_state=reset_state, **flags)
        (re, im), (last_re, last_im) = lru_scan((a[0, 0].tanh(), b[0, 0].tanh()), (b, c), start.chunk(2, 1), **flags)
        return torch.cat([re, im], 2), torch.cat([last_re, last_im], 1)


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("name", ["linear", "lru", "memory"])
def test_exported_scans_equal_eager(name, flagged):
    def inputs(rows, length):
        x, start = torch.randn(rows, length, 9), torch.randn(rows, 6)
        flags = (torch.rand(rows, length) < 0.3, torch.rand(rows, length) < 0.7) if flagged else ()
        return x, start, *flags

    axes = {0: ROWS, 1: LENGTH}
    shapes = axes, {0: ROWS}, *([axes] * 2 * flagged)
    program = torch.export.export(Scan(name), inputs(2, 5), dynamic_shapes=shapes).module()
    for rows, length in [(1, 1), (3, 2), (2, 40)]:
        given = inputs(rows, length)
        for got, want in zip(program(*given), Scan(name)(*given), strict=True):
            assert_close(got, want)
