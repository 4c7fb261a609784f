"""Exported graphs: torch.export and ONNX of a whole text and of one step, for any batch, length and device.

Through transformers' own exporters where a cache goes in or out, since they flatten caches; through torch.export alone
for the rest.
"""

import onnx
import pytest
import torch
from models import PATTERNS, make_ids, make_model
from torch.export import Dim
from torch.export.passes import move_to_device_pass
from transformers import StaticCache
from transformers.exporters.base import ExportedModel
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

from hybridlm.model.mixers_hybridlm import CELLS
from hybridlm.model.scan_hybridlm import linear_scan, lru_scan, memory_scan

# transformers' runner reads torch's tree of inputs by an old name; copying such a tree warns of another.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
EXAMPLE = 2, 7
OTHERS = [(3, 5), (1, 40)]


@pytest.fixture(autouse=True)
def _torch_logs_badly(monkeypatch):
    """torch.export.load logs one message with too few arguments, which `logging` reports on stderr."""
    monkeypatch.setattr("logging.raiseExceptions", False)


def small_model(pattern, **options):
    return make_model(pattern, eos_token_id=None, **({"intermediate_size": 0} | options))


def saved_and_loaded(exported, folder):
    exported.save_pretrained(folder)
    return ExportedModel.from_pretrained(folder)


@torch.no_grad()  # else the loops of the graph are differentiated, in vain
def export_both(model, exporter, config, **cache):
    """Programs of the prefill and of one step, from examples of another batch and length than they then run with."""
    ids = make_ids(*EXAMPLE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prefill = exporter.export(model, inputs | cache, config)
    out = prefill(**inputs, **cache)
    next_ids, mask = out.logits[:, -1:].argmax(-1), torch.ones(EXAMPLE[0], EXAMPLE[1] + 1, dtype=torch.long)
    inputs = {"input_ids": next_ids, "attention_mask": mask, "past_key_values": out.past_key_values}
    return prefill, exporter.export(model, inputs, config)


def padded(rows, length):
    """Ids and a mask whose first row, of several, is padded on the left."""
    ids = make_ids(rows, length)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, : length // 2] = 0
    return ids, mask


def assert_close(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def check_generation(model, prefill, step, rows, length, steps=4, **cache):
    """Logits of the prefill and of every step, and the tokens, against eager mode."""
    ids, mask = padded(rows, length)
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=steps + 1, do_sample=False)
    out = prefill(input_ids=ids, attention_mask=mask, **cache)
    with torch.no_grad():
        want = model(input_ids=tokens[:, :-1], attention_mask=torch.cat([mask, mask.new_ones(rows, steps)], 1)).logits
    assert_close(out.logits[mask.bool()], want[:, :length][mask.bool()])
    for i in range(steps):
        chosen = out.logits[:, -1:].argmax(-1)
        assert torch.equal(chosen, tokens[:, length + i : length + i + 1])
        mask = torch.cat([mask, torch.ones_like(chosen)], 1)
        out = step(input_ids=chosen, attention_mask=mask, past_key_values=out.past_key_values)
        assert_close(out.logits[:, -1], want[:, length + i])
    return out


@pytest.mark.parametrize("pattern", PATTERNS)
def test_prefill_and_steps_for_any_batch_and_length(pattern):
    model = small_model(pattern)
    prefill, step = export_both(model, DynamoExporter(), DynamoConfig(dynamic=True))
    for rows, length in OTHERS:
        check_generation(model, prefill, step, rows, length)


def test_saved_and_loaded_programs_leave_the_cache_that_they_are_given(tmp_path):
    model = small_model("lru+bmru attention")
    prefill, step = export_both(model, DynamoExporter(), DynamoConfig(dynamic=True))
    prefill, step = saved_and_loaded(prefill, tmp_path / "prefill"), saved_and_loaded(step, tmp_path / "step")
    check_generation(model, prefill, step, 3, 5)

    ids, mask = padded(3, 5)
    cache = prefill(input_ids=ids, attention_mask=mask).past_key_values
    inputs = {"input_ids": ids[:, :1], "attention_mask": torch.cat([mask, mask[:, -1:]], 1), "past_key_values": cache}
    first = step(**inputs)
    assert torch.equal(step(**inputs).logits, first.logits)
    assert cache.get_seq_length() == 5
    assert first.past_key_values.get_seq_length() == 6


@pytest.mark.parametrize("pattern", ["+".join(sorted(CELLS)), "mamba2 attention"])
def test_onnx_in_onnxruntime(pattern, tmp_path):
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = small_model(pattern)
    prefill, step = export_both(model, OnnxExporter(), OnnxConfig(dynamic=True))
    prefill = saved_and_loaded(prefill, tmp_path)
    for rows, length in OTHERS:
        out = check_generation(model, prefill, step, rows, length)
    layer = out.past_key_values.layers[0]
    assert {state.dtype for state in layer.states.values()} == {torch.float32}
    assert layer.get_seq_length() == OTHERS[-1][1] + 4

    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert "Scan" in {node.op_type for node in graph.node}
    for value in graph.input:
        assert all(axis.dim_param and not axis.dim_value for axis in value.type.tensor_type.shape.dim), value.name


def test_one_graph_goes_on_by_any_number_of_tokens():
    model = small_model("lru+gru+bmru")
    ids = make_ids(2, 12)
    with torch.no_grad():
        want = model(ids).logits
        cache = model(ids[:, :4]).past_key_values
    inputs = {"input_ids": ids[:, 4:7].contiguous(), "past_key_values": cache}
    program = DynamoExporter().export(model, inputs, DynamoConfig(dynamic=True))
    out = program(**inputs)
    assert_close(out.logits, want[:, 4:7])
    out = program(input_ids=ids[:, 7:].contiguous(), past_key_values=out.past_key_values)
    assert_close(out.logits, want[:, 7:])


@pytest.mark.parametrize(("pattern", "batches"), [("lru+bmru", OTHERS), ("rglru attention", [(2, 5)])])
def test_static_cache(pattern, batches):
    """With attention layers, transformers' StaticCache holds its batch as a constant of the graph."""
    model = small_model(pattern)

    def empty():
        return {"past_key_values": StaticCache(config=model.config, max_cache_len=48)}

    prefill, step = export_both(model, DynamoExporter(), DynamoConfig(dynamic=True), **empty())
    for rows, length in batches:
        check_generation(model, prefill, step, rows, length, **empty())


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


@pytest.mark.parametrize("pattern", ["+".join(sorted(CELLS)), "mamba2", "bmru attention"])
def test_packed_and_padded_rows(pattern):
    """Documents that begin anew, by position_ids, with padding on both sides."""
    model = small_model(pattern, learn_initial_state=True)
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
    program = move_to_device_pass(export_logits(small_model("lru+gru attention"), "attention_mask"), "meta")
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
