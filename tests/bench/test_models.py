"""Training and generation beside other models: sizes, figures, positions, cells that fail or take too long."""

import math
import multiprocessing
import os
import time

import pytest
import torch
from torch.nn import functional as F

from hybridlm import ops
from hybridlm.bench import cells, generation, training
from hybridlm.bench.cells import Outcome, take_turns
from hybridlm.bench.generation import GenerationCell, Text
from hybridlm.bench.peers import FAMILIES, OURS, QUICK, TOLERANCE, fit
from hybridlm.bench.training import TrainingCell
from hybridlm.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_what_was_asked_for(name):
    for parameters, options in ((6_000_000, {}), (QUICK["parameters"], {"width": 64, "vocabulary": 64})):
        size = fit(name, parameters, **options)
        assert abs(size.parameters / parameters - 1) <= TOLERANCE
    assert fit(name, 6_000_000).width == 256
    model = size.build()
    assert sum(p.numel() for p in model.parameters()) == size.parameters
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.num_hidden_layers == size.layers


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="parameters=1,000: no Llama with a vocabulary of 4,096"):
        fit("Llama", 1000)
    with pytest.raises(UserError, match="width=0"):
        fit("Llama", 1000, width=0)
    with pytest.raises(UserError, match=r"did you mean 'Llama'\? Choose from 'rglru bmru'"):
        training.measure(["Lama"], CPU)
    with pytest.raises(UserError, match=r"there is no such model\. Choose from"):
        training.measure(["xyz"], CPU)
    with pytest.raises(UserError, match="precision='fp16'"):
        training.measure(["Llama"], CPU, precisions=["fp16"])
    for length in (1, 0, -3):
        with pytest.raises(UserError, match=f"^length={length}: must be at least 2"):
            training.measure(["Llama"], CPU, lengths=[16, length])
    with pytest.raises(UserError, match=r"^position=0: must be at least 1"):
        generation.measure(["Llama"], CPU, positions=[16, 0])
    with pytest.raises(UserError, match="tokens=1"):
        generation.measure(["Llama"], CPU, tokens=1)


def test_training_has_a_row_for_every_cell():
    names = ["rglru bmru", "Llama"]
    options = {"lengths": [16, 64], "tokens": 64, "precisions": ["fp32", "bf16"], "rounds": 2}
    result = training.measure(names, CPU, **QUICK, **options, apart=False, side=16)
    rows = {(row["model"], row["length"], row["precision"]): row for row in result["rows"]}
    assert set(rows) == {(n, t, p) for n in names for t in (16, 64) for p in ("fp32", "bf16")}
    for row in rows.values():
        assert "problem" not in row
        assert row["tokens_per_second"] > 0
        assert (row["tokens_per_step"], row["rounds"], row["memory_bytes"]) == (64, 2, None)
        assert row["rows"] * row["length"] == 64
    assert "rglru bmru" in training.table(result)


def test_what_is_given_twice_is_measured_once():
    options = {"tokens": 16, "rounds": 1, "apart": False}
    result = training.measure(["Llama"], CPU, **QUICK, lengths=[16, 16], precisions=["fp32"] * 2, side=16, **options)
    assert [row["length"] for row in result["rows"]] == [16]
    result = generation.measure(["Llama"], CPU, **QUICK, positions=[16, 20, 16], **{**options, "tokens": 2})
    assert [row["position"] for row in result["rows"]] == [16, 20]


@pytest.mark.parametrize("kind", [training, generation])
def test_the_path_of_the_scans_goes_with_the_figures(kind):
    names = ["rglru bmru", "Llama"]
    options = {"rounds": 1, "apart": False, "tokens": 16} | ({"lengths": [16], "side": 16} if kind is training else {})
    options |= {} if kind is training else {"positions": [16]}
    with ops.using("torch"):
        ours, other = (result := kind.measure(names, CPU, **QUICK, **options))["rows"]
    assert ours["forced"] == "torch"
    assert ours["scans"] == "torch: two-level scan in pure PyTorch; asked for"
    assert "forced" not in other
    *_, why, line = kind.table(result).splitlines()
    assert line == f"scans of rglru bmru: {ours['scans']}"
    assert why.startswith("MiB ?: known only where every model has a process of its own")
    free = kind.measure(names[:1], CPU, **QUICK, **options)["rows"][0]
    assert (free["forced"], free["scans"]) == (None, ops.explain())


def test_a_path_that_cannot_run_is_refused_before_anything_is_measured():
    with ops.using("triton"), pytest.raises(UserError, match="path='triton' cannot run here"):
        training.measure(["rglru bmru"], CPU, **QUICK)
    with ops.using("triton"), pytest.raises(UserError, match="path='triton' cannot run here"):
        generation.measure(["rglru bmru"], CPU, **QUICK)


def test_beyond_a_length_ours_are_alone(monkeypatch):
    monkeypatch.setattr(training, "ALONE", 16)
    result = training.measure(
        ["rglru bmru", "Llama"], CPU, **QUICK, lengths=[16, 32], tokens=16, rounds=1, apart=False, side=16
    )
    rows = [(row["model"], row["length"], row["tokens_per_step"]) for row in result["rows"]]
    assert rows == [("rglru bmru", 16, 16), ("Llama", 16, 16), ("rglru bmru", 32, 32)]


def test_training_figures():
    size = fit("Llama", **QUICK)
    outcome = Outcome(rounds=[{"seconds": s, "memory": m} for s, m in ((2.0, 5), (4.0, 7), (2.0, 6))])
    rate = 6.0 * size.parameters * 100  # a ceiling of 100 tokens per second
    figures = training._figures(outcome, {"rows": 4, "length": 25}, size, [rate, rate, 2 * rate])
    assert figures["tokens_per_second"] == 50
    assert figures["ceiling_tokens_per_second"] == pytest.approx(100)
    assert figures["share_of_ceiling"] == pytest.approx(0.25)  # the median of 50/100, 25/100, 50/200
    assert (figures["memory_bytes"], figures["rounds"]) == (7, 3)
    assert training._figures(Outcome(problem="why"), {}, size, []) == {"problem": "why"}


def test_a_step_trains_and_a_loss_that_is_no_number_is_not_timed():
    cell = TrainingCell(fit("rglru bmru", **QUICK), 16, 2, "fp32", "cpu")
    cell.prepare()
    losses = [cell._step().item() for _ in range(20)]
    assert losses[-1] < losses[0]
    with torch.no_grad():
        next(cell.model.parameters()).fill_(math.nan)
    with pytest.raises(RuntimeError, match="the loss is nan"):
        cell.measure()


def test_the_rate_of_products(monkeypatch):
    monkeypatch.setattr(training, "seconds_of", lambda call, device, times: 2.0)
    assert training.products(CPU, torch.float32, 10)() == 1000.0


def keys(text):
    """Positions in each layer that keeps keys."""
    return [layer.keys.shape[2] for layer in text.cache.layers if getattr(layer, "keys", None) is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cell_stays_at_its_positions(name):
    """RecurrentGemma's window is 2048, of which the last 2047 are kept."""
    positions = [20, 2100]
    cell = GenerationCell(fit(name, **QUICK), positions, 3, "cpu")
    facts = cell.prepare()
    growing = {"Llama": 4, "RecurrentGemma": 1}.get(name, 0)
    for _ in range(2):
        for position, text in cell.texts.items():
            assert keys(text) == [min(position, 2047) if name == "RecurrentGemma" else position] * growing
        figures = cell.measure()
    assert set(figures) == {f"{way} {p}" for way in ("bare", "generate", "products") for p in positions}
    assert all(value > 0 for value in figures.values())
    for position, text in cell.texts.items():
        assert text.written.shape == (1, 2 + cell.counts[position])  # the last token, and a first that is not timed
    small, large = (facts["cache_bytes"][position] for position in positions)
    if name == "Llama":
        assert [small, large] == [4 * 2 * position * 64 * 4 for position in positions]  # layers, keys and values, width
    elif name != "RecurrentGemma":
        assert small == large
    if name == "rglru bmru":
        assert small == 4 * (1 + 3) * 64 * 4 + 4 * 8  # a state and three inputs of the convolution; a count


@pytest.mark.parametrize("name", ["rglru bmru", "Llama"])
def test_both_ways_write_the_same_tokens(name):
    model = fit(name, **QUICK).build().eval()
    with torch.inference_mode():
        texts = [torch.manual_seed(1) and Text(model, 20, 20) for _ in range(2)]
        bare = [texts[0].last]
        for _ in range(6):
            bare.append(texts[0].forward(bare[-1]).argmax(-1))
        texts[1].generate(5)
    assert torch.equal(torch.cat(bare, dim=1), texts[1].written)


def test_slow_ones_write_fewer_tokens(monkeypatch):
    monkeypatch.setattr(Text, "bare", lambda text, tokens: 0.5)
    cell = GenerationCell(fit("Llama", **QUICK), [16], 32, "cpu")
    cell.prepare()
    assert cell.counts == {16: 4}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_products_are_those_of_a_step(name):
    """Every weight matrix is multiplied once; those of the gates in blocks."""
    size = fit(name, **QUICK)
    model = size.build().eval()
    seen = sum(weight.numel() for _, _, weight in generation._products(model))
    matrices = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    gates = sum(p.numel() for n, p in model.named_parameters() if n.endswith("gate_weight") and p.ndim == 3)
    assert bool(gates) == (name in ("rglru bmru", "RecurrentGemma"))
    assert seen == sum(matrices.values()) + gates
    assert seen > 0.8 * size.parameters
    for function, x, weight in generation._products(model):
        assert function(x, weight).shape[-1] == (weight.shape[0] if function is F.linear else weight.shape[2])


def test_generation_figures():
    size = fit("rglru bmru", **QUICK)
    rounds = [{"bare 16": 0.010, "generate 16": 0.02, "products 16": 0.002}] * 2
    rounds.append({"bare 16": 0.1, "generate 16": 1, "products 16": 0})
    facts = {"cache_bytes": {16: 3}, "memory_bytes": {16: 5}}
    figures = generation._figures(Outcome(rounds=rounds, facts=facts), 16, size)
    assert (figures["cache_bytes"], figures["memory_bytes"]) == (3, 5)
    assert figures["tokens_per_second"] == pytest.approx(100)
    assert figures["generate_tokens_per_second"] == pytest.approx(50)
    assert figures["overhead_microseconds_per_layer"] == pytest.approx(0.008e6 / size.layers)


class Sleeper:
    """A cell that takes so long; in the round given it fails."""

    def __init__(self, seconds=0.0, fails="", ends=False):
        self.seconds, self.fails, self.ends = seconds, fails, ends

    def prepare(self):
        if self.ends:
            os._exit(3)  # at once, as a process that is killed
        return {"threads": torch.get_num_threads()}

    def measure(self):
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError(self.fails)
        return {"seconds": self.seconds}


def test_cells_apart_are_ended_where_they_take_too_long(monkeypatch):
    """Forked from one process that has imported the libraries; `test_positions.py` has one that begins anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([cells.__name__])
    monkeypatch.setattr(cells.multiprocessing, "get_context", lambda _: context)
    given = {"quick": Sleeper(), "slow": Sleeper(60), "gone": Sleeper(ends=True)}
    outcomes, others = take_turns(given, rounds=2, limit=5, threads=1, beside=lambda: {"rate": 1.0})
    assert others == [{"rate": 1.0}] * 2
    assert outcomes["quick"] == Outcome([{"seconds": 0.0}] * 2, {"threads": 1})
    assert outcomes["slow"].problem == "over the limit of 5 s"
    assert outcomes["gone"].problem == "the process ended by itself, with exit code 3"


def test_a_cell_that_fails_leaves_the_others_alone():
    given = {"good": Sleeper(), "failing": Sleeper(fails="no\nmore")}
    outcomes, _ = take_turns(given, rounds=2, limit=3, threads=1, apart=False)
    assert outcomes["failing"].problem == "RuntimeError: no"
    assert len(outcomes["good"].rounds) == 2


def test_a_cell_that_used_up_its_limit_stays_out_of_later_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cells.time, "perf_counter", lambda: now[0])

    class Steady(Sleeper):
        def measure(self):
            now[0] += self.seconds
            return {"seconds": self.seconds}

    outcomes, _ = take_turns({"a": Steady(4), "b": Steady(1)}, rounds=4, limit=10, threads=1, apart=False)
    assert [len(outcome.rounds) for outcome in outcomes.values()] == [2, 4]


def test_ours_are_named_first():
    assert OURS == ("rglru bmru", "lru bmru", "mamba2")
    assert tuple(FAMILIES)[: len(OURS)] == OURS
