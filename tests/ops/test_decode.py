"""Decode steps in compiled code: whole layers against their own modules; and who makes those run."""

import contextlib

import pytest
import torch
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.model.cells_bmru import BmruCell
from hybridlm.ops import decode, selfcheck
from hybridlm.ops.cpu.decode import Program

if not ops.explain().startswith("cpu"):
    pytest.skip(ops.explain(), allow_module_level=True)

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Of the largest number: a sum in another order may round to a neighbour, in 16 bits by a step of the storage."""


def assert_close(got, want, dtype):
    scale = max(1.0, want.abs().max().item())
    assert (got.double() - want.double()).abs().max().item() <= TOLERANCE[dtype] * scale


RECORDED = ["rglru", "lru", "bmru", "cmru", "mingru", "nfsm", "rglru+bmru lru", "rglru+nfsm", "rglru attention bmru"]
CONFIG = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "threshold_init": 0.4,
}  # fmt: skip


def model_of(pattern, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, **{**CONFIG, **fields})).to(dtype).eval()


@pytest.fixture
def ran(monkeypatch):
    """How many tokens each program that ran was for."""
    for dtype in TOLERANCE:
        assert decode._right(dtype)  # which runs programs too, once
    rows, run = [], Program.run
    monkeypatch.setattr(Program, "run", lambda program: (rows.append(program.rows), run(program))[1])
    return rows


@torch.no_grad()
def write(model, rows=2, steps=6, kernels=True):
    """Logits of single steps behind a prompt, the states after each, and the window at the end."""
    torch.manual_seed(1)
    ids, cache = torch.randint(CONFIG["vocab_size"], (rows, 5 + steps)), DynamicCache(config=model.config)
    context = contextlib.nullcontext() if kernels else unrecorded()
    with context:
        model(input_ids=ids[:, :5], past_key_values=cache)
        logits, states = [], []
        for t in range(5, 5 + steps):
            logits.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits)
            states += [s.clone() for layer in cache.layers for s in getattr(layer, "states", {}).values()]
    assert cache.get_seq_length() == 5 + steps
    return torch.cat(logits, 1), states, [layer.conv for layer in cache.layers if hasattr(layer, "conv")]


@contextlib.contextmanager
def unrecorded():
    """Layers run as their modules stand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "begin", lambda x: None)
        yield


class TestLayers:
    @pytest.mark.parametrize("pattern", RECORDED)
    @pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
    def test_equal_their_modules(self, pattern, dtype, ran):
        """In 16 bits a candidate often equals its threshold up to rounding: a few memory units write on one side alone,
        with an amplitude that keeps what they emit below the tolerance."""
        halves = torch.finfo(dtype).bits == 16
        model = model_of(pattern, dtype, amplitude_init=2**-10 if halves else 1.0)
        logits, states, windows = write(model)
        assert len(ran) == 6 * sum(kind != "attention" for kind in pattern.split())
        plain_logits, plain_states, plain_windows = write(model, kernels=False)
        assert_close(logits, plain_logits, dtype)
        for window, plain in zip(windows, plain_windows, strict=True):
            assert_close(window, plain, dtype)
        for state, plain in zip(states, plain_states, strict=True):
            if state.dtype == torch.uint8:
                assert torch.equal(state, plain)
            elif halves and torch.equal(state, state.round()):
                assert (state != plain).double().mean() <= 0.05
            else:
                assert_close(state, plain, dtype)

    @pytest.mark.parametrize(
        "fields",
        [
            {"conv_kernel": 0}, {"conv_kernel": 1}, {"conv_kernel": 2}, {"output_gate": False}, {"input_skip": True},
            {"intermediate_size": 0}, {"state_size": 24}, {"learn_initial_state": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_of_every_shape(self, fields, ran):
        model = model_of("rglru bmru", **fields)
        logits, states, _ = write(model)
        assert len(ran) == 12
        plain_logits, plain_states, _ = write(model, kernels=False)
        assert_close(logits, plain_logits, torch.float32)
        for state, plain in zip(states, plain_states, strict=True):
            assert_close(state, plain, torch.float32)

    def test_of_rows_and_threads(self, ran):
        """A row is what it is alone, to the last bit, whatever the threads; the products are large enough to be cut."""
        model = model_of("rglru bmru", hidden_size=256, intermediate_size=320)
        threads, found = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(write(model, rows=decode.MOST_ROWS)[0])
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*found)
        assert set(ran) == {decode.MOST_ROWS}
        write(model, rows=decode.MOST_ROWS + 1)
        assert set(ran) == {decode.MOST_ROWS}

    def test_an_epsilon_of_training(self, ran):
        model = model_of("bmru")
        model.set_epsilon(0.25)
        (logits, states, _), (plain, plain_states, _) = write(model), write(model, kernels=False)
        assert len(ran) == 6
        assert_close(logits, plain, torch.float32)
        assert all(torch.equal(s, p) for s, p in zip(states, plain_states, strict=True))

    def test_rows_of_a_cache_that_were_copied(self, ran):
        """A step in place must not reach the copies, which beam search makes."""
        model = model_of("rglru bmru")
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]]), past_key_values=cache)
            cache.batch_repeat_interleave(2)
            model(input_ids=torch.tensor([[7], [8], [9], [7]]), past_key_values=cache)
            cache.reorder_cache(torch.tensor([1, 1, 2, 0]))
            got = model(input_ids=torch.tensor([[7], [8], [9], [10]]), past_key_values=cache).logits
        assert ran == [4, 4]  # of the second step: the first copies the rows, which torch gave as a view
        with torch.no_grad():
            for row, text in enumerate(([1, 2, 3, 8, 7], [1, 2, 3, 8, 8], [4, 5, 6, 9, 9], [1, 2, 3, 7, 10])):
                want = model(input_ids=torch.tensor([text]), logits_to_keep=1).logits
                assert_close(got[row : row + 1], want, torch.float32)


def states_of(cache):
    return [s for layer in cache.layers for s in layer.states.values()]


class TestWhoMakesTheModulesRun:
    """What watches or replaces a part of a layer gets what it would get without the kernels."""

    @pytest.mark.parametrize("part", ["mixer", "mixer.in_proj", "mixer.conv", "mixer.cells.0", "mixer_norm", "mlp"])
    @pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
    def test_hooks(self, part, kind, ran):
        model, seen = model_of("rglru bmru"), []
        getattr(model.model.layers[1].get_submodule(part), kind)(lambda *_: seen.append(part))
        write(model)
        assert len(seen) == 7  # the prompt, then every step
        assert len(ran) == 6  # of the other layer

    def test_a_forward_of_its_own(self, ran):
        model, seen = model_of("rglru"), []
        linear = model.model.layers[0].mixer.out_proj
        forward = linear.forward
        linear.forward = lambda x: (seen.append(x), forward(x))[1]
        write(model)
        assert (len(seen), ran) == (7, [])

    def test_a_replaced_map(self, ran):
        class Doubled(torch.nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model = model_of("rglru")
        model.model.layers[0].mlp.down_proj.__class__ = Doubled
        logits, *_ = write(model)
        assert ran == []
        assert torch.equal(logits, write(model, kernels=False)[0])

    def test_a_cell_derived_from_one(self, ran):
        class Opposite(BmruCell):
            def drive(self, x, mask):
                c, beta = super().drive(x, mask)
                return -c, beta

        model = model_of("bmru")
        model.model.layers[0].mixer.cells[0].__class__ = Opposite
        logits, *_ = write(model)
        assert ran == []
        assert torch.equal(logits, write(model, kernels=False)[0])

    @pytest.mark.parametrize("kind", ["hook", "bias", "exploration"])
    def test_transitions_that_are_not_a_plain_map(self, kind, ran):
        model, seen = model_of("nfsm"), []
        cell = model.model.layers[0].mixer.cells[0]
        if kind == "hook":
            cell.transition.register_forward_hook(lambda *_: seen.append(1))
        elif kind == "bias":
            cell.transition.bias = torch.nn.Parameter(torch.ones(512))
        else:
            model.set_exploration(0.5)
        write(model)
        assert ran == []
        assert len(seen) == 7 * (kind == "hook")

    def test_a_parametrized_weight(self, ran):
        class Doubled(torch.nn.Module):
            def forward(self, weight):
                return 2 * weight

        for part, weight in (("mixer.out_proj", "weight"), ("mixer.cells.0", "gate_weight"), ("mixer_norm", "weight")):
            model = model_of("rglru")
            parametrize.register_parametrization(model.model.layers[0].get_submodule(part), weight, Doubled())
            write(model)
        assert ran == []

    def test_weights_that_were_swapped_for_a_call(self, ran):
        model, cache = model_of("rglru"), DynamicCache(config=model_of("rglru").config)
        weights = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
            called = {"input_ids": torch.tensor([[3]]), "past_key_values": cache}
            logits = torch.func.functional_call(model, weights, (), called).logits
        assert ran == []
        assert not logits.any()

    def test_weights_of_another_dtype(self, ran):
        model = model_of("rglru", torch.bfloat16)
        model.model.layers[0].mixer.conv.float()
        write(model)
        assert ran == []

    def test_modes_that_count_operations(self, ran):
        model, counts = model_of("rglru"), []
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
            with FlopCounterMode(display=False) as counter:
                model(input_ids=torch.tensor([[3]]), past_key_values=cache)
            counts.append(counter.get_total_flops())
        assert ran == []
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
        assert counts[0] >= 2 * linear

    def test_autocast(self, ran):
        with torch.autocast("cpu", torch.bfloat16):
            write(model_of("rglru"))
        assert ran == []

    @pytest.mark.filterwarnings(
        "ignore:.torch.jit.trace. is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
    )
    def test_modes_of_functions_and_traces(self, ran):
        class Counts(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                seen.append(function)
                return function(*args, **(kwargs or {}))

        model, seen = model_of("rglru"), []
        with Counts():
            write(model)
        assert torch.nn.functional.linear in seen
        assert ran == []
        model.requires_grad_(False)  # constants of the trace
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
            layer, x = model.model.layers[0], torch.randn(1, 1, 32)
            torch.jit.trace(lambda x: layer(x, past_key_values=cache), x, check_trace=False)
        assert ran == []

    def test_a_default_device(self, ran):
        with torch.device("meta"):
            model_of("rglru")
        model = model_of("rglru")
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
            ids = torch.tensor([[3]])
            with torch.device("meta"):
                logits = model(input_ids=ids, past_key_values=cache).logits
        assert logits.isfinite().all()

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    def test_weights_that_the_kernels_cannot_read(self, ran):
        model = model_of("rglru lru")
        linear = model.model.layers[0].mixer.out_proj
        weight = linear.weight.detach()
        del linear.weight
        linear.weight = weight  # a plain tensor, not registered
        model.model.layers[1].mixer_norm.eps = None
        assert write(model)[0].isfinite().all()
        model = model_of("rglru")
        down = model.model.layers[0].mlp.down_proj
        down.weight = torch.nn.Parameter(down.weight.detach().to_sparse_csr(), requires_grad=False)
        assert write(model)[0].isfinite().all()
        assert ran == []

    def test_maps_that_were_cut_by_hand(self, ran):
        """Their numbers of features say what they were."""
        model = model_of("rglru")
        mlp = model.model.layers[0].mlp
        for part, kept in (
            ("gate_proj", (slice(40),)),
            ("up_proj", (slice(40),)),
            ("down_proj", (slice(None), slice(40))),
        ):
            weight = getattr(mlp, part).weight
            getattr(mlp, part).weight = torch.nn.Parameter(weight.detach()[kept].contiguous())
        cut = write(model)
        assert ran == []
        for part in ("gate_proj", "up_proj"):
            getattr(mlp, part).out_features = 40
        mlp.down_proj.in_features = 40
        for got, want in zip(write(model)[0], cut[0], strict=True):
            assert_close(got, want, torch.float32)
        assert len(ran) == 6

    def test_a_class_of_maps_that_is_watched(self, ran, monkeypatch):
        seen, forward = [], torch.nn.Linear.forward
        model = model_of("rglru")
        monkeypatch.setattr(torch.nn.Linear, "forward", lambda map, x: (seen.append(map), forward(map, x))[1])
        write(model, steps=1)
        assert ran == []
        assert len({id(map) for map in seen}) == sum(isinstance(part, torch.nn.Linear) for part in model.modules())

    @pytest.mark.parametrize(("pattern", "name"), [("rglru", "p"), ("lru", "nu_log"), ("lru", "gamma_log")])
    def test_recurrence_parameters_of_another_dtype(self, pattern, name, ran):
        model = model_of(pattern)
        cell = model.model.layers[0].mixer.cells[0]
        setattr(cell, name, torch.nn.Parameter(getattr(cell, name).detach().double()))
        write(model)
        assert ran == []

    def test_a_step_in_place_is_seen_by_autograd(self, ran):
        model, cache = model_of("rglru"), DynamicCache(config=model_of("rglru").config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
            versions = [tensor._version for tensor in cache.layers[0]._tensors()]
            model(input_ids=torch.tensor([[3]]), past_key_values=cache)
        assert len(ran) == 1
        assert all(t._version > v for t, v in zip(cache.layers[0]._tensors(), versions, strict=True))

    def test_gradients(self, ran):
        model = model_of("bmru")
        cache = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
        model(input_ids=torch.tensor([[3]]), past_key_values=cache).logits.sum().backward()
        assert ran == []

    def test_recorded_writes(self, ran):
        model = model_of("bmru")
        model.record_writes()
        write(model)
        assert ran == []
        assert 0 < model.write_penalty().item() < 1

    def test_padding(self, ran):
        model = model_of("rglru")
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2], [3, 4]]), past_key_values=cache)
            before = [s.clone() for s in states_of(cache)]
            mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
            model(input_ids=torch.tensor([[5], [6]]), attention_mask=mask, past_key_values=cache)
        assert ran == []
        assert torch.equal(states_of(cache)[0][1], before[0][1])

    def test_a_path_that_was_forced(self, ran):
        with ops.using("torch"):
            write(model_of("rglru"))
        assert ran == []

    def test_kernels_that_are_wrong(self, ran, monkeypatch, caplog):
        monkeypatch.setattr(selfcheck, "_decode", lambda *_: ([torch.ones(1)], [torch.zeros(1)]))
        decode._right.cache_clear()
        try:
            logits, *_ = write(model := model_of("rglru"))
            assert ran == []
            assert "decode steps run in plain PyTorch" in caplog.text
            assert torch.equal(logits, write(model, kernels=False)[0])
        finally:
            decode._right.cache_clear()
