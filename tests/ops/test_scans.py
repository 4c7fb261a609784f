"""Every path of the scans against the reference loop: outputs, final states and every gradient."""

import math
from functools import cache, partial
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from cases import CASES, flags, memory_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridlm import ops
from hybridlm.model import scan_hybridlm
from hybridlm.model.surrogate_hybridlm import heaviside, sign
from hybridlm.ops import reference

OPERATIONS = ("linear_scan", "lru_scan", "memory_scan")
LENGTHS = (1, 2, 3, 31, 33, 63, 64, 65, 257)
WIDTHS = (1, 3, 64, 130)


@pytest.fixture(params=["torch", "cpu"])
def fast(request):
    """The three scans, on one path."""
    return on_path(request.param)


def on_path(name):
    if name == "cpu":
        try:
            ops.explain(path="cpu")
        except ValueError as error:
            pytest.skip(str(error))
    return SimpleNamespace(**{op: partial(getattr(scan_hybridlm, op), path=name) for op in OPERATIONS})


def run(call, module, inputs, options, weights):
    """Outputs, and the gradients of a weighted sum over all of them."""
    leaves = [None if x is None else x.detach().clone().requires_grad_(True) for x in inputs]
    outputs = call(module, leaves, **options)
    total = sum((w.to(out.dtype) * out).sum() for w, out in zip(weights, outputs, strict=True))
    grads = torch.autograd.grad(total, [x for x in leaves if x is not None], allow_unused=True)
    return outputs, [torch.zeros(()) if g is None else g for g in grads]


@cache
def expected(name, rows, length, width, dtype, reset, mask, start):
    """A random case, and what the reference makes of it: the same for every path."""
    case, call = CASES[name]
    generator = torch.Generator().manual_seed(0)
    inputs = case(rows, length, width, generator, dtype, start)
    options = flags(rows, length, reset, mask, generator)
    probe = call(reference, inputs, **options)
    weights = [torch.randn(out.shape, generator=generator) for out in probe]
    outputs, grads = run(call, reference, inputs, options, weights)
    return inputs, options, weights, [x.detach() for x in outputs] + grads


def compare(fast, name, rows, length, width, dtype, reset, mask, start, tolerance):
    inputs, options, weights, want = expected(name, rows, length, width, dtype, reset, mask, start)
    outputs, grads = run(CASES[name][1], fast, inputs, options, weights)
    for i, (x, y) in enumerate(zip([*outputs, *grads], want, strict=True)):
        assert x.dtype == y.dtype or y.ndim == 0
        scale = max(1.0, y.abs().max().item())
        difference = (x.double() - y.double()).abs().max().item()
        assert difference <= tolerance * scale, f"{name} output {i}: {difference} of {scale}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_reference_in_float64(fast, name, length):
    widths = (1, 3) if length < 257 else (3,)
    for (reset, mask), start, width in product([(0, 0), (1, 0), (0, 1), (1, 1)], (False, True), widths):
        compare(fast, name, 2, length, width, torch.float64, reset, mask, start, tolerance=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_equals_reference_at_a_thousand_steps(fast, name):
    compare(fast, name, 2, 1000, 3, torch.float64, True, True, True, tolerance=1e-10)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 1 / 128), (torch.float16, 1 / 1024)]
)
def test_equals_reference_in_low_precision(fast, name, width, dtype, tolerance):
    # bf16 keeps 8 bits; both sides run in fp32 and round once, so they differ by at most one unit in the last place.
    compare(fast, name, 3, 65, width, dtype, True, True, True, tolerance)


@pytest.mark.parametrize("name", ["linear", "lru"])
def test_gradcheck(fast, name):
    case, call = CASES[name]
    generator = torch.Generator().manual_seed(1)
    for length in (1, 5, 37):
        inputs = [x.requires_grad_(True) for x in case(2, length, 2, generator, torch.float64, True)]
        options = flags(2, length, True, True, generator)
        assert torch.autograd.gradcheck(lambda *x, options=options: tuple(call(fast, x, **options)), inputs)


def test_surrogates_are_exact_forward_and_smooth_backward():
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert heaviside(x).tolist() == [0, 1, 1, 1]
    assert sign(x).tolist() == [-1, 1, 1, 1]
    (grad,) = torch.autograd.grad(sign(x, 3.0).sum(), x)
    assert torch.allclose(grad, 2 * 3.0 / (1 + (math.pi * 3.0 * x.detach()) ** 2), rtol=1e-14)


# The fixture is the same for every example.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 150),
    cuts=st.lists(st.integers(1, 149), max_size=4),
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_bistable_states_are_bitwise_the_same_under_any_chunking(fast, length, cuts, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    c, beta, s0 = memory_case(2, length, 5, generator, dtype, True)
    reset, mask = flags(2, length, True, True, generator).values()
    fresh = torch.tensor([1.0, -1, 1, 1, -1])
    want, _ = reference.memory_scan(c, beta, s0, reset=reset, mask=mask, reset_state=fresh)
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    state, parts = s0, []
    for lo, hi in pairwise(edges):
        piece = slice(lo, hi)
        states, state = fast.memory_scan(
            c[:, piece], beta[:, piece], state, reset=reset[:, piece], mask=mask[:, piece], reset_state=fresh
        )
        parts.append(states)
    assert torch.equal(torch.cat(parts, 1), want)


def test_cumulative_states_are_exact_counters(fast):
    generator = torch.Generator().manual_seed(3)
    c, beta, _ = memory_case(1, 5000, 4, generator, torch.float32, False)
    states, final = fast.memory_scan(c, beta, epsilon=1.0)
    steps = (c.abs() >= beta) * torch.where(c >= 0, 1, -1)
    assert torch.equal(states, steps.cumsum(1).float())
    assert torch.equal(final, states[:, -1])


def test_sign_network_identity(fast):
    """From s in {-1, +1} and epsilon 0 the update is s_t = S(c_t + beta_t s_{t-1}) (ties aside)."""
    generator = torch.Generator().manual_seed(4)
    c, beta, s0 = memory_case(3, 500, 7, generator, torch.float64, True)
    states, _ = fast.memory_scan(c, beta, s0)
    state = s0
    for t in range(c.shape[1]):
        state = sign(c[:, t] + beta[:, t] * state)
        assert torch.equal(states[:, t], state)


def test_hysteresis_loop_has_its_edges_at_beta(fast):
    beta = 0.75
    up = torch.linspace(-2, 2, 401, dtype=torch.float64)
    drive = torch.cat([up, up.flip(0)]).view(1, -1, 1)
    states, _ = fast.memory_scan(drive, torch.full_like(drive, beta), torch.full((1, 1), -1.0, dtype=torch.float64))
    rising, falling = states[0, :401, 0], states[0, 401:, 0]
    assert torch.equal(rising, torch.where(up >= beta, 1.0, -1.0).double())
    assert torch.equal(falling, torch.where(up.flip(0) <= -beta, -1.0, 1.0).double())


@pytest.mark.parametrize("name", CASES)
def test_nan_stays_in_its_channel(fast, name):
    case, call = CASES[name]
    generator = torch.Generator().manual_seed(5)
    inputs = case(2, 70, 4, generator, torch.float32, True)
    clean = call(fast, inputs)
    drive = 2 if name == "lru" else 0 if name.startswith("memory") else 1
    inputs[drive] = inputs[drive].clone()
    inputs[drive][1, 40, 2] = math.nan
    dirty = call(fast, inputs)
    assert dirty[0][1, 40:, 2].isnan().all()
    expected = torch.ones(2, 70, 4, dtype=torch.bool)
    expected[1, 40:, 2] = False
    assert torch.equal(dirty[0][expected], clean[0][expected])


@pytest.mark.parametrize("name", CASES)
def test_two_runs_are_bitwise_equal_and_strides_do_not_matter(fast, name):
    case, call = CASES[name]
    inputs = case(2, 90, 6, torch.Generator().manual_seed(6), torch.float32, True)
    strided = [x if x is None or x.ndim != 3 else x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    for first, second in ((inputs, inputs), (inputs, strided)):
        for x, y in zip(call(fast, first), call(fast, second), strict=True):
            assert torch.equal(x, y)


def test_poisoned_memory_is_never_read(fast, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda x, **kwargs: torch.full_like(x, math.nan, **kwargs))
    monkeypatch.setattr(torch, "empty", lambda *shape, **kwargs: empty(*shape, **kwargs).fill_(math.nan))
    for case, call in CASES.values():
        for length in (3, 40, 67):
            outputs = call(fast, case(2, length, 3, torch.Generator().manual_seed(7), torch.float32, True))
            assert not any(out.isnan().any() for out in outputs)


def test_a_million_steps(fast):
    length = 2**20
    c = torch.zeros(1, length, 1)
    c[0, 0] = 2.0
    states, final = fast.memory_scan(c, torch.ones_like(c), torch.full((1, 1), -1.0))
    assert final.item() == 1.0
    assert bool((states == 1).all())
    counted, _ = fast.linear_scan(torch.ones_like(c), torch.ones_like(c))
    assert counted[0, -1, 0].item() == length


def test_shapes_are_checked():
    fast = scan_hybridlm
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="T >= 1"):
        fast.linear_scan(x[:, :0], x[:, :0])
    with pytest.raises(ValueError, match="a has shape"):
        fast.linear_scan(x[:, :4], x)
    with pytest.raises(ValueError, match="must be bool of shape"):
        fast.memory_scan(x, x, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="initial_state"):
        fast.memory_scan(x, x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="decay"):
        fast.lru_scan((torch.zeros(4), torch.zeros(3)), (x, x))
