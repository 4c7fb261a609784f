"""The kernels between the matrix products equal the PyTorch forms, in outputs and gradients, alone and in a model."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.model import fused_hybridlm as forms
from hybridlm.ops import fused
from hybridlm.ops.cpu import fused as kernels
from hybridlm.ops.cpu import library

if not ops.explain().startswith("cpu"):
    pytest.skip(ops.explain(), allow_module_level=True)

SETS = library.SETS[: library.library().best + 1]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Against fp64, of the largest number: one rounding of the storage, and in fp32 that of the sums."""
DTYPES = list(TOLERANCE)
ROWS, STEPS = 2, 7


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float64: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def leaf(x):
    """A leaf in fp64 of its own."""
    return x.detach().double().clone().requires_grad_()


def assert_close(got, want, dtype):
    scale = max(1.0, want.abs().max().item())
    assert (got.double() - want.double()).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 5, 48, 300])
class TestKernels:
    def test_norm(self, random, dtype, isa, width):
        x, grad, weight = (
            random(ROWS, STEPS, width, dtype=dtype),
            random(ROWS, STEPS, width, dtype=dtype),
            random(width),
        )
        x64, w64 = leaf(x), leaf(weight)
        want = torch.nn.functional.rms_norm(x64, (width,), w64, 1e-6)
        want.backward(grad.double())
        assert_close(kernels.norm_forward(x, weight, 1e-6, isa=isa), want, dtype)
        grad_x, grad_weight = kernels.norm_backward(x, grad, weight, 1e-6, isa=isa)
        assert_close(grad_x, x64.grad, dtype)
        assert_close(grad_weight, w64.grad, dtype)

    def test_gate(self, random, dtype, isa, width):
        g, u, grad = (random(ROWS, STEPS, width, dtype=dtype) for _ in range(3))
        g64, u64 = leaf(g), leaf(u)
        want = torch.nn.functional.silu(g64) * u64
        want.backward(grad.double())
        assert_close(kernels.gate_forward(g, u, isa=isa), want, dtype)
        for got, x in zip(kernels.gate_backward(g, u, grad, isa=isa), (g64, u64), strict=True):
            assert_close(got, x.grad, dtype)

    def test_rglru(self, random, dtype, isa, width):
        heads, block = 3, width
        pre, x = random(heads, ROWS * STEPS, 2 * block, dtype=dtype), random(ROWS, STEPS, heads * block, dtype=dtype)
        bias, softplus = random(heads, 2 * block), random(heads * block).abs() / 10
        leaves = pre64, bias64, x64, s64 = [leaf(t) for t in (pre, bias, x, softplus)]
        want = forms.rglru_gates(pre64, bias64, x64, s64)
        grads = [random(ROWS, STEPS, heads * block, dtype=kernels.wide(x)) for _ in want]
        torch.autograd.backward(want, [grad.double() for grad in grads])
        for got, w in zip(kernels.rglru_forward(pre, x, bias, softplus, isa=isa), want, strict=True):
            assert_close(got, w, dtype)
        back = kernels.rglru_backward(pre, x, *grads, bias, softplus, isa=isa)
        for got, t in zip(back, leaves, strict=True):
            assert_close(got, t.grad, dtype)

    @pytest.mark.parametrize("taps", [1, 2, 4, 6])
    def test_conv(self, random, dtype, isa, width, taps):
        """With the inputs of the call before, and without; over the starts of documents."""
        u, grad = (random(ROWS, STEPS, width, dtype=dtype) for _ in range(2))
        weight, bias = random(width, taps), random(width)
        starts = torch.zeros(ROWS, STEPS, dtype=torch.bool)
        starts[0, 0] = starts[0, 3] = starts[1, 2] = starts[1, 3] = True
        for past in (None, random(ROWS, taps - 1, width, dtype=dtype)):
            for reset in (None, starts):
                leaves = [None if t is None else leaf(t) for t in (u, past, weight, bias)]
                want = conv_by_definition(*leaves, reset)
                want.backward(grad.double())
                assert_close(kernels.conv_forward(u, past, weight, bias, reset, isa=isa), want, dtype)
                back = kernels.conv_backward(u, past, grad, weight, reset, isa=isa)
                for got, x in zip(back, leaves, strict=True):
                    if x is not None and x.numel():
                        assert_close(got, torch.zeros_like(x) if x.grad is None else x.grad, dtype)


def conv_by_definition(u, past, weight, bias, reset):
    """v_t = b + sum_k w_k u_{t-k}, where no document starts in t-k+1 ... t."""
    rows, steps, width = u.shape
    taps = weight.shape[1]
    inputs = torch.cat([u.new_zeros(rows, taps - 1, width) if past is None else past, u], 1)
    v = []
    for t in range(steps):
        total = bias.expand(rows, width)
        for k in range(taps):
            same = (
                torch.ones(rows, 1) if reset is None else 1 - reset[:, max(0, t - k + 1) : t + 1].any(1, True).double()
            )
            total = total + weight[:, taps - 1 - k] * inputs[:, taps - 1 + t - k] * same
        v.append(total)
    return torch.stack(v, 1)


def test_the_root_where_everything_is_kept():
    """1 - a^2 has lost no digit next to a = 1, and the slope there is cut."""
    x, pre = torch.ones(1, 1, 4), torch.zeros(1, 1, 8)
    for softplus in (1e-7, 1e-4, 1e-2, 0.3, 1.0):
        bias = torch.tensor([[0.0] * 4 + [40.0] * 4])
        _, b = kernels.rglru_forward(pre, x, bias, torch.full((4,), softplus))
        exact = (-torch.expm1(torch.tensor(-8 * softplus, dtype=torch.float64))).sqrt()
        assert torch.allclose(b.double(), exact.expand(1, 1, 4), rtol=2e-6)
    grads = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    for grad in kernels.rglru_backward(pre, x, *grads, bias, torch.zeros(4)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e4, 1e4])
def test_extreme_inputs_do_as_pytorch_does(value):
    g, u = torch.full((1, 2, 3), value), torch.ones(1, 2, 3)
    want = torch.nn.functional.silu(g) * u
    assert torch.allclose(kernels.gate_forward(g, u), want, equal_nan=True, atol=1e-30)


def big_model(pattern):
    torch.manual_seed(0)
    config = HybridLMConfig(pattern=pattern, vocab_size=60, hidden_size=64, num_attention_heads=4)
    return HybridLMForCausalLM(config), torch.randint(60, (2, 160))


# Under autocast no unit that writes or holds: whether it does hangs on the last digit of a bf16 number.
@pytest.mark.parametrize(
    ("pattern", "autocast"),
    [("rglru bmru", False), ("lru attention", False), ("rglru lru", True), ("lru attention", True)],
)
def test_a_model_gives_the_same_with_and_without(pattern, autocast, monkeypatch):
    model, tokens = big_model(pattern)
    served = []
    for name in ("norm", "gate", "conv", "rglru"):
        real = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *a, name=name, real=real: served.append(name) or real(*a))
    results = []
    for path in ("torch", "cpu"):
        with ops.using(path), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model.zero_grad()
            out = model(input_ids=tokens, labels=tokens, use_cache=False)
        out.loss.backward()
        results.append(
            (out.logits.float().detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
        )
        assert bool(served) == (path == "cpu")
    assert {"norm", "gate", "conv"} <= set(served)
    assert ("rglru" in served) == ("rglru" in pattern)
    (want, want_grads), (got, got_grads) = results
    if autocast:
        exact = exact_logits(model, tokens)
        assert (got - exact).abs().mean() <= 1.1 * (want - exact).abs().mean()
    else:
        assert (got - want).abs().max() < 1e-5
        for x, y in zip(got_grads, want_grads, strict=True):
            assert (x - y).abs().max() <= 2e-5 * max(1.0, y.abs().max().item())


def exact_logits(model, tokens):
    with ops.using("torch"), torch.no_grad():
        return model.double()(input_ids=tokens).logits.float()


def test_other_places_and_paths_are_not_served():
    assert fused.serves(torch.zeros(1, 1, 256))
    large = torch.zeros(2, 64, 256)
    assert fused.serves(large)
    assert not fused.serves(large.to("meta"))
    assert not fused.serves(large.int())
    with ops.using("torch"):
        assert not fused.serves(large)


def test_a_wrong_kernel_is_not_served(monkeypatch, caplog):
    right = kernels.gate_forward
    monkeypatch.setattr(kernels, "gate_forward", lambda g, u: right(g, u) * 1.001)
    fused._right.cache_clear()
    try:
        assert not fused.serves(torch.zeros(2, 64, 256))
        assert "gate is off by" in caplog.text
    finally:
        fused._right.cache_clear()


@pytest.mark.parametrize("length", [9, 1])
def test_a_model_of_fake_tensors_has_shapes_and_no_memory(length):
    """As tools that plan memory run it. A pointer to one of its tensors ends the process."""
    with FakeTensorMode():
        model, _ = big_model("rglru bmru lru attention")
        inputs = torch.zeros(2, length, 64)
        with torch.no_grad():
            assert model(inputs_embeds=inputs, use_cache=False).logits.shape == (2, length, 60)
        model(inputs_embeds=inputs, use_cache=False).logits.sum().backward()


def test_torch_func_passes_what_has_no_scan():
    model, _ = big_model("attention")
    inputs = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))

    def total(parameters):
        return torch.func.functional_call(model, parameters, kwargs={"inputs_embeds": inputs}).logits.square().sum()

    grads = torch.func.grad(total)(dict(model.named_parameters()))
    total(dict(model.named_parameters())).backward()
    for name, parameter in model.named_parameters():
        assert (grads[name] - parameter.grad).abs().max() <= 1e-5 * max(1.0, parameter.grad.abs().max().item()), name
