"""Decode steps in compiled code: each operation; whole layers against their own modules; who makes those run."""

import contextlib

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.model import fused_hybridlm as forms
from hybridlm.ops import decode, reference, selfcheck
from hybridlm.ops.cpu import library
from hybridlm.ops.cpu.decode import Program

if not ops.explain().startswith("cpu"):
    pytest.skip(ops.explain(), allow_module_level=True)

SETS = library.SETS[: library.library().best + 1]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Against fp64, of the largest number: one rounding of the storage, and in fp32 that of the sums."""
ROWS = 3


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class Step:
    """A program whose operations take and give tensors."""

    def __init__(self, dtype, isa):
        self.program, self.dtype = Program(ROWS, dtype, isa), dtype
        self.given = []

    def address(self, x):
        assert x.dtype == self.dtype
        self.given.append(x.contiguous())
        return self.given[-1].data_ptr()

    def result(self, value, n):
        """The numbers at `value`, read by an addition of zeros."""
        got = torch.full((ROWS, n), float("nan"), dtype=self.dtype)
        self.program.add(value, self.address(torch.zeros(ROWS, n, dtype=self.dtype)), n, to=got)
        self.program.run()
        return got


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float64: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(got, want, dtype):
    scale = max(1.0, want.abs().max().item())
    assert (got.double() - want.double()).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("width", [1, 6, 48, 130])
class TestOperations:
    def test_norm(self, random, dtype, isa, width):
        x, weight, step = random(ROWS, width, dtype=dtype), random(width, dtype=dtype), Step(dtype, isa)
        got = step.result(step.program.norm(step.address(x), weight, 1e-5), width)
        assert_close(got, F.rms_norm(x.double(), (width,), weight.double(), 1e-5), dtype)

    @pytest.mark.parametrize("outputs", [1, 5, 96])
    @pytest.mark.parametrize("biased", [True, False])
    def test_product(self, random, dtype, isa, width, outputs, biased):
        x, weight, step = random(ROWS, width, dtype=dtype), random(outputs, width, dtype=dtype), Step(dtype, isa)
        bias = random(outputs, dtype=dtype) if biased else None
        got = step.result(step.program.product(step.address(x), weight, bias), outputs)
        assert_close(got, F.linear(x.double(), weight.double(), None if bias is None else bias.double()), dtype)

    @pytest.mark.parametrize("heads", [1, 3])
    def test_heads(self, random, dtype, isa, width, heads):
        x, weight = random(ROWS, heads * width, dtype=dtype), random(heads, width, 2 * width, dtype=dtype)
        step = Step(dtype, isa)
        got = step.result(step.program.heads(step.address(x), weight), heads * 2 * width)
        want = torch.einsum("bhk,hkn->bhn", x.double().view(ROWS, heads, width), weight.double())
        assert_close(got, want.flatten(1), dtype)

    @pytest.mark.parametrize("taps", [1, 2, 4])
    def test_conv_moves_its_window(self, random, dtype, isa, width, taps):
        u, weight, bias = (random(*shape, dtype=dtype) for shape in ((ROWS, width), (width, taps), (width,)))
        window, step = random(ROWS, taps - 1, width, dtype=dtype), Step(dtype, isa)
        inputs = torch.cat([window, u.unsqueeze(1)], 1)
        got = step.result(step.program.conv(step.address(u), weight, bias, window), width)
        assert_close(got, torch.einsum("bkn,nk->bn", inputs.double(), weight.double()) + bias.double(), dtype)
        assert torch.equal(window, inputs[:, 1:])

    def test_gate_and_sums(self, random, dtype, isa, width):
        g, u, weight = random(ROWS, width, dtype=dtype), random(ROWS, width, dtype=dtype), random(width, dtype=dtype)
        step = Step(dtype, isa)
        got = step.result(step.program.gate(step.address(g), step.address(u), width), width)
        assert_close(got, F.silu(g.double()) * u.double(), dtype)
        step = Step(dtype, isa)
        got = step.result(step.program.add(step.address(g), step.address(u), width), width)
        assert_close(got, g.double() + u.double(), dtype)
        step = Step(dtype, isa)
        got = step.result(step.program.add_scaled(step.address(g), step.address(u), weight), width)
        assert_close(got, g.double() + (weight * u).double(), dtype)

    def test_rglru(self, random, dtype, isa, width):
        heads = 2
        n = heads * width
        pre, x = random(ROWS, heads, 2 * width, dtype=dtype), random(ROWS, n, dtype=dtype)
        bias, softplus, s = random(heads, 2 * width, dtype=dtype), random(n).abs().to(wide(dtype)), random(ROWS, n)
        s = s.to(wide(dtype))
        a, b = forms.rglru_gates(
            pre.double().transpose(0, 1), bias.double(), x.double().unsqueeze(1), softplus.double()
        )
        want = a[:, 0] * s.double() + b[:, 0]
        step = Step(dtype, isa)
        value = step.program.rglru(step.address(pre.flatten(1)), bias, step.address(x), softplus, s)
        assert_close(step.result(value, n), want, dtype)
        assert_close(s, want, wide(dtype))

    def test_mingru(self, random, dtype, isa, width):
        gate, candidate = random(ROWS, width, dtype=dtype), random(ROWS, width, dtype=dtype)
        s, step = random(ROWS, width).to(wide(dtype)), Step(dtype, isa)
        z = gate.double().sigmoid()
        want = (1 - z) * s.double() + z * candidate.double()
        got = step.result(step.program.mingru(step.address(gate), step.address(candidate), s), width)
        assert_close(got, want, dtype)
        assert_close(s, want, wide(dtype))

    @pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
    def test_memory(self, random, dtype, isa, width, epsilon):
        c, threshold, alpha = (random(*shape, dtype=dtype) for shape in ((ROWS, width), (ROWS, width), (width,)))
        c[0, 0], threshold[0, 0] = -threshold[0, 0], threshold[0, 0]  # |c| = beta writes
        s, step = random(ROWS, width).sign().to(wide(dtype)), Step(dtype, isa)
        c64, beta64 = c.double().unsqueeze(1), threshold.double().abs().unsqueeze(1)
        want = reference.memory_scan(c64, beta64, s.double(), epsilon=epsilon)[1]
        value = step.program.memory(step.address(c), step.address(threshold), alpha, s, epsilon)
        assert_close(step.result(value, width), alpha.double() * want, dtype)
        assert torch.equal(s.double(), want)

    def test_memory_whose_margin_is_nan(self, random, dtype, isa, width):
        c, threshold, alpha = (random(*shape, dtype=dtype) for shape in ((ROWS, width), (ROWS, width), (width,)))
        c[1, 0] = float("nan")
        s, step = torch.ones(ROWS, width, dtype=wide(dtype)), Step(dtype, isa)
        got = step.result(step.program.memory(step.address(c), step.address(threshold), alpha, s, 0.0), width)
        where = torch.zeros(ROWS, width, dtype=torch.bool)
        where[1, 0] = True
        assert torch.equal(s.isnan(), where)
        assert torch.equal(got.isnan(), where)

    def test_lru(self, random, dtype, isa, width):
        b, gain = random(ROWS, 2 * width, dtype=dtype), random(2 * width).to(wide(dtype))
        decay = [random(width).to(wide(dtype)) / 2 for _ in range(2)]
        re, im = (random(ROWS, width).to(wide(dtype)) for _ in range(2))
        drive = b.double() * gain.double()
        lam, s = torch.complex(*(x.double() for x in decay)), torch.complex(re.double(), im.double())
        want = torch.view_as_real(lam * s + torch.complex(drive[:, :width], drive[:, width:]))
        step = Step(dtype, isa)
        value = step.program.lru(step.address(b), tuple(decay), gain, re, im)
        assert_close(step.result(value, 2 * width), torch.cat([want[..., 0], want[..., 1]], 1), dtype)
        assert_close(torch.stack([re, im], -1), want, wide(dtype))


# Whole layers

RECORDED = ["rglru", "lru", "bmru", "cmru", "mingru", "rglru+bmru lru", "rglru attention bmru"]
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
        model = model_of(pattern, dtype)
        logits, states, windows = write(model)
        assert len(ran) == 6 * sum(kind != "attention" for kind in pattern.split())
        plain_logits, plain_states, plain_windows = write(model, kernels=False)
        assert_close(logits, plain_logits, dtype)
        # A state in fp32 of numbers that were rounded to the storage dtype one by one, in one of two ways.
        for state, plain in zip(states, plain_states, strict=True):
            assert_close(state, plain, dtype)
        for window, plain in zip(windows, plain_windows, strict=True):
            assert_close(window, plain, dtype)

    @pytest.mark.parametrize(
        "fields",
        [
            {"conv_kernel": 0}, {"conv_kernel": 1}, {"conv_kernel": 2}, {"output_gate": False},
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


class TestSelfCheck:
    @pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
    def test_passes_and_draws_no_random_numbers(self, dtype):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        assert selfcheck.decode_disagreement(dtype) is None
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "operation",
        ["norm", "product", "heads", "conv", "gate", "add", "add_scaled", "rglru", "mingru", "memory", "lru"],
    )
    def test_finds_an_operation_that_is_left_out(self, operation, monkeypatch):
        monkeypatch.setattr(Program, operation, lambda program, x, *_, to=None, **__: x)
        assert "off by" in selfcheck.decode_disagreement(torch.float32)

    def test_its_memory_unit_is_far_from_its_threshold(self):
        """Sums in another order must not make it write on one side alone."""
        with torch.no_grad():
            layer, seen = selfcheck._layer("rglru+bmru", torch.float64), {}
        for name in ("candidate", "threshold"):
            getattr(layer.mixer.cells[1], name).register_forward_hook(
                lambda _, __, y, name=name: seen.update({name: y})
            )
        cache_layer = type(DynamicCache(config=model_of("bmru").config).layers[0])
        cache = type("Cache", (), {"layers": [cache_layer()]})()
        with torch.no_grad():
            for x in (selfcheck._wave(1, 2, 3, selfcheck.WIDTH), selfcheck._wave(2, 2, 1, selfcheck.WIDTH)):
                layer(x.double(), past_key_values=cache)
                margin = (seen["candidate"].abs() - seen["threshold"].abs()).abs()
                assert margin.min() > 0.2
