"""The operations of a decode step in compiled code, each against its PyTorch form in fp64."""

import pytest
import torch
from torch.nn import functional as F

from hybridlm import ops
from hybridlm.model import fused_hybridlm as forms
from hybridlm.ops import reference
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

    @pytest.mark.parametrize("states", [2, 3, 8])
    def test_index(self, random, dtype, isa, width, states):
        heads, n = (1 if width == 1 else 2), states
        x, weight = random(ROWS, width, dtype=dtype), random(heads * n * n, width, dtype=dtype)
        bias, values = random(heads, n, n, dtype=dtype), random(heads, n, width // heads, dtype=dtype)
        weight.view(heads, n, n, width)[:, :, -1] = weight.view(heads, n, n, width)[:, :, 0]
        bias[:, :, -1] = bias[:, :, 0]  # the last destination equals the first and is never taken
        bias[-1, :, -1] = 64  # but in the last head, where it always is
        s = torch.arange(ROWS * heads).view(ROWS, heads).remainder(n).to(torch.uint8)
        theta = F.linear(x.double(), weight.double()).to(dtype).double().view(ROWS, 1, heads, n, n)
        h, want = reference.index_values(theta, bias.double(), None, values.double(), s, 1.0, None, None)
        step = Step(dtype, isa)
        got = step.result(step.program.index(step.address(x), weight, bias, values, s), width)
        assert torch.equal(s, want[:, 0])
        assert (s[:, -1] == n - 1).all()
        assert torch.equal(got.double(), h.flatten(1))

    def test_index_of_a_nan_and_of_no_state(self, random, dtype, isa, width):
        x, weight = random(ROWS, width, dtype=dtype), random(9, width, dtype=dtype)
        bias, values = random(1, 3, 3, dtype=dtype), random(1, 3, width, dtype=dtype)
        bias[0, 1, 1:] = float("nan")  # read by the row in state 1 alone, whose first NaN is the destination
        s, step = torch.tensor([[0], [1], [3]], dtype=torch.uint8), Step(dtype, isa)
        got = step.result(step.program.index(step.address(x), weight, bias, values, s), width)
        assert got.isnan().all(1).tolist() == [False, True, True]
        assert got.isnan().any(1).tolist() == [False, True, True]
        assert s[1:].tolist() == [[1], [3]]

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


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_index_compares_what_the_map_would_have_stored(dtype, isa):
    """1 and 1 + 2^-12 are one number in 16 bits: the first destination wins, as it does behind the module."""
    x, step = torch.ones(ROWS, 4, dtype=dtype), Step(dtype, isa)
    weight = torch.tensor([[1, 0, 0, 0], [1, 2**-12, 0, 0]], dtype=dtype).repeat(2, 1)
    bias, values = torch.zeros(1, 2, 2, dtype=dtype), torch.arange(8).view(1, 2, 4).to(dtype)
    s = torch.ones(ROWS, 1, dtype=torch.uint8)
    got = step.result(step.program.index(step.address(x), weight, bias, values, s), 4)
    assert not s.any()
    assert torch.equal(got, values[0, :1].expand(ROWS, -1))
