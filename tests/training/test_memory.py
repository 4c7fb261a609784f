"""What memory units do, in the log: counted exactly, where it is due, and without a trace in the numbers of the run."""

import json
from contextlib import nullcontext

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.journal import Journal
from hybridlm.training.loop import pretrain
from hybridlm.training.memory import MemoryStatistics, flat_statistics, statistics
from hybridlm.training.metrics import read_rows
from hybridlm.training.session import accelerator_session
from hybridlm.training.step import Terms, backward, valid_targets

CELLS = "model={pattern: bmru+cmru rglru acmru attention fqbmru+bmru+bmru, hidden_size: 16, num_attention_heads: 2}"


def test_statistics_of_known_counts():
    found = statistics(torch.tensor([0, 10, 5, 1, 0]), 10)
    assert found == {
        "units": 5,
        "write_share": 16 / 50,
        "mean_hold": pytest.approx((1 + 2 + 10) / 3),
        "dead_units": 2,
        "always_writing_units": 1,
    }
    assert statistics(torch.zeros(3, dtype=torch.long), 7)["mean_hold"] is None


@pytest.fixture
def model() -> HybridLMForCausalLM:
    torch.manual_seed(0)
    config = HybridLMConfig(
        pattern="bmru+cmru rglru acmru fqbmru", vocab_size=30, hidden_size=16, num_attention_heads=2
    )
    return HybridLMForCausalLM(config).train()


def own_count(model, mask=None, **inputs) -> dict[tuple[int, str], torch.Tensor]:
    """z of every memory cell by the equations, from the cell's own inputs: (B, T, N) bool, False at padding."""
    seen = {}

    def look(key, cell):
        def hook(module, args):
            x = args[0]
            if key[1] == "fqbmru":
                u = torch.relu(cell.drive(x))
                z = (u > cell.beta_hi) | (u < cell.beta_lo)
            else:
                z = cell.candidate(x).abs() - cell.threshold(x).abs() >= 0
            seen[key] = z if mask is None else z & mask.bool().unsqueeze(2)

        return cell.register_forward_pre_hook(hook)

    handles = [
        look((i, name), cell)
        for i, layer in enumerate(model.model.layers)
        for name, cell in zip(model.config.block_types[i].split("+"), layer.mixer.cells, strict=True)
        if name != "rglru"
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("padded", [False, True])
def test_counts_are_those_of_the_equations(model, padded):
    ids = torch.randint(30, (3, 11))
    mask = None
    if padded:
        mask = torch.ones(3, 11, dtype=torch.long)
        mask[0, :4] = mask[2, 9:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    want = own_count(model, mask, **inputs)
    model.record_writes(counts=True)
    model(**inputs)
    found = model.write_counts()
    assert [(counts.layer, counts.cell) for counts in found] == list(want)
    assert list(want) == [(0, "bmru"), (0, "cmru"), (2, "acmru"), (3, "fqbmru")]
    for counts in found:
        z = want[counts.layer, counts.cell]
        assert torch.equal(counts.writes, z.sum((0, 1)))
        assert int(counts.positions) == (33 if mask is None else int(mask.sum()))
        assert 0 < int(counts.writes.sum()) < z.numel()
    model.record_writes(False)
    model(**inputs)
    assert model.write_counts() == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_add_up(recipe, model, checkpointing):
    if checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.randint(30, (4, 9))
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:], "position_ids": torch.arange(8).expand(4, 8)}
    with accelerator_session(recipe()) as accelerator:
        rows = []
        for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 2), slice(2, 4)]):
            batches = [{name: tensor[part] for name, tensor in batch.items()} for part in parts]
            with MemoryStatistics(model) as memory:
                backward(accelerator, model, batches, valid_targets(accelerator, batches), memory=memory)
            rows.append(memory.rows(accelerator))
    assert rows[0] == rows[1]
    want = own_count(model, input_ids=ids[:, :-1])
    assert [row["write_share"] for row in rows[0]] == [float(z.double().mean()) for z in want.values()]
    assert model.write_counts() == []
    assert not any(cell.notes_writes for cell in model._memory_cells())


@pytest.mark.parametrize("penalty", [False, True])
def test_counting_holds_no_graph_of_a_layer_that_ran_again(model, penalty):
    """What checkpointing computes again during the backward is gone behind it: nothing that the cells keep leads
    there."""
    model.activation_checkpointing_enable()
    model.record_writes(penalty, counts=True)
    ids = torch.randint(30, (3, 9))
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    cells = list(model._memory_cells())
    shares, counts = [cell.write_share for cell in cells], [cell.write_counts for cell in cells]
    assert [share is not None and share.requires_grad for share in shares] == [penalty] * 4
    runs = []
    for cell in cells:
        cell.register_forward_pre_hook(lambda *_: runs.append(1))
    (loss + model.write_penalty() if penalty else loss).backward()
    assert len(runs) == 4  # each layer did run again
    assert all(cell.write_share is share for cell, share in zip(cells, shares, strict=True))
    assert all(cell.write_counts is count for cell, count in zip(cells, counts, strict=True))


def test_the_penalty_has_its_gradient_under_checkpointing(recipe, model):
    """The same as without, counted or not, and it is not nothing."""
    ids = torch.randint(30, (4, 9))
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:], "position_ids": torch.arange(8).expand(4, 8)}
    parts = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    found = {}
    with accelerator_session(recipe()) as accelerator:
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            for weight, counted in ((0.0, True), (3.0, False), (3.0, True)):
                model.zero_grad()
                model.record_writes(weight > 0)
                with MemoryStatistics(model, recording=weight > 0) if counted else nullcontext() as memory:
                    backward(accelerator, model, parts, 32, Terms(write_penalty=weight), memory)
                found[checkpointing, weight, counted] = {
                    name: parameter.grad.clone() for name, parameter in model.named_parameters()
                }
    for name, tensor in found[False, 3.0, True].items():
        for checkpointing, counted in ((False, False), (True, False), (True, True)):
            assert torch.equal(found[checkpointing, 3.0, counted][name], tensor), name
        assert torch.equal(found[True, 0.0, True][name], found[False, 0.0, True][name])
        if ".threshold." in name:
            assert (found[True, 0.0, True][name] - tensor).abs().max() > 1e-3  # thresholds are what it pushes


@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_rows_of_a_run(recipe, monkeypatch, penalty):
    tracked = []
    monkeypatch.setattr(Journal, "_track", lambda self, kind, row: tracked.append((kind, row)))
    config = recipe(CELLS, "training.steps=7", "logging={every: 3, memory_every: 2}", f"write_penalty={penalty}")
    result = pretrain(config)
    rows = read_rows(result.metrics)
    counted = [row for row in rows if "memory" in row]
    assert [row["step"] for row in counted] == [2, 4, 6, 7]
    for row in counted:
        cells = [(entry["layer"], entry["cell"]) for entry in row["memory"]]
        assert cells == [(0, "bmru"), (0, "cmru"), (2, "acmru"), (4, "fqbmru"), (4, "bmru"), (4, "bmru")]
        for entry in row["memory"]:
            assert set(entry) == {
                "layer", "cell", "units", "write_share", "mean_hold", "dead_units", "always_writing_units",
            }  # fmt: skip
            assert entry["units"] == 16
            assert 0 < entry["write_share"] < 1
            assert 1 <= entry["mean_hold"] <= 64
            assert 0 <= entry["dead_units"] + entry["always_writing_units"] <= 16
    memory = [row for kind, row in tracked if kind == "train" and any(name.startswith("memory/") for name in row)]
    assert [row["step"] for row in memory] == [2, 4, 6, 7]
    assert memory[0]["memory/0.cmru/write_share"] == counted[0]["memory"][1]["write_share"]
    assert {"memory/4.bmru/mean_hold", "memory/4.bmru.1/mean_hold"} <= memory[0].keys()
    assert not any("memory" in row for _, row in tracked)
    assert all("memory" not in row for split, row in tracked if split == "train")

    never = recipe(CELLS, "training.steps=7", "logging.memory_every=0", f"write_penalty={penalty}", "run.name=never")
    other = pretrain(never)
    assert not any("memory" in row for row in read_rows(other.metrics))
    same = [(folder.checkpoint / "model.safetensors").read_bytes() for folder in (result, other)]
    assert same[0] == same[1]


def test_a_stack_without_memory_units_has_no_such_rows(recipe):
    result = pretrain(recipe("model.pattern=rglru attention", "logging.memory_every=1"))
    assert not any("memory" in row for row in read_rows(result.metrics))


def test_a_number_that_is_not_there_is_not_tracked():
    row = {"layer": 1, "cell": "bmru", **statistics(torch.zeros(2, dtype=torch.long), 5)}
    assert flat_statistics([row]) == {
        "1.bmru/write_share": 0.0,
        "1.bmru/dead_units": 2,
        "1.bmru/always_writing_units": 0,
    }
    assert json.loads(json.dumps(row, allow_nan=False))["mean_hold"] is None


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own, of a Function
def test_a_compiled_model_has_two_graphs_and_no_more():
    """Counting is one more variant of the graph, compiled once."""
    torch.manual_seed(0)
    config = HybridLMConfig(pattern="bmru", vocab_size=30, hidden_size=16, num_attention_heads=2)
    model = HybridLMForCausalLM(config).train()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, dynamic=False)
    ids = torch.randint(30, (2, 8))
    made = []
    for due in (False, True, False, True, True, False):
        model.record_writes(due, counts=due)
        compiled(input_ids=ids, use_cache=False)
        assert len(model.write_counts()) == due
        made.append(len(graphs))
    assert made[0] < made[1]
    assert made[1:] == [made[1]] * 5
