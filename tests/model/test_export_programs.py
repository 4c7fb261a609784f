"""Exported programs as files: saved and loaded, in onnxruntime, with a static cache, in chunks."""

import onnx
import pytest
import torch
from exporting import OTHERS, assert_close, check_generation, export_both, padded, small_model
from models import make_ids
from transformers import StaticCache
from transformers.exporters.base import ExportedModel
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

# transformers' runner reads torch's tree of inputs by an old name; copying such a tree warns of another.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")


@pytest.fixture(autouse=True)
def _torch_logs_badly(monkeypatch):
    """torch.export.load logs one message with too few arguments, which `logging` reports on stderr."""
    monkeypatch.setattr("logging.raiseExceptions", False)


def saved_and_loaded(exported, folder):
    exported.save_pretrained(folder)
    return ExportedModel.from_pretrained(folder)


def test_saved_and_loaded_programs_leave_the_cache_that_they_are_given(tmp_path):
    model = small_model("bmru attention")
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


@pytest.mark.parametrize("pattern", ["bmru+gru+lru+rglru", "mamba2 attention"])
def test_onnx_in_onnxruntime(pattern, tmp_path):
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

    prefill, step = export_both(model, DynamoExporter(), DynamoConfig(dynamic=True), cache=empty)
    for rows, length in batches:
        check_generation(model, prefill, step, rows, length, **empty())
