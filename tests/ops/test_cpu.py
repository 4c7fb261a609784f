"""What is particular to the C kernels: instruction sets, cuts of time, threads, strides, the library's age."""

import math
from itertools import product

import pytest
import torch
from cases import CASES, flags

from hybridlm import ops
from hybridlm.ops.cpu import kernels, library
from hybridlm.ops.errors import Unavailable

try:
    best = library.library().best
except Unavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SETS = library.SETS[: best + 1]
"""Those that this processor has."""


def both_ways(name, inputs, options, **forced):
    """States, final states and all gradients of one operation, straight from the kernels."""
    generator = torch.Generator().manual_seed(3)
    reset, mask = options["reset"], options["mask"]

    def random(x):
        return torch.randn(x.shape, generator=generator).to(x.dtype)

    if name == "linear":
        a, b, start = inputs
        states, final = kernels.linear_forward(a, b, start, reset, mask, **forced)
        grads = random(states), random(final)
        back = kernels.linear_backward(*grads, a, states, start, reset, mask, **forced)
        return [states, final, *back]
    if name == "lru":
        lam, drive, start = inputs[:2], inputs[2:4], inputs[4:]
        re, im, *final = kernels.lru_forward(*lam, *drive, *start, reset, mask, **forced)
        grads = [random(x) for x in (re, im, *final)]
        back = kernels.lru_backward(*grads, *lam, re, im, *start, reset, mask, **forced)
        return [re, im, *final, *back]
    c, beta, start, fresh = inputs
    epsilon = float(name.split("_")[1])
    states, final = kernels.memory_forward(c, beta, start, epsilon, reset, fresh, mask, **forced)
    grads = random(states), random(final)
    back = kernels.memory_backward(*grads, c, beta, states, start, epsilon, 1.3, reset, fresh, mask, **forced)
    return [states, final, *back]


def case_of(name, rows, length, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return CASES[name][0](rows, length, width, generator, dtype, True), flags(rows, length, True, True, generator)


@pytest.mark.parametrize("name", CASES)
def test_instruction_sets_agree(name):
    """Up to the one rounding that a fused multiply-add saves."""
    for dtype, width in product((torch.float32, torch.bfloat16, torch.float16, torch.float64), (1, 19, 130)):
        inputs, options = case_of(name, 2, 33, width, dtype)
        plain, *others = (both_ways(name, inputs, options, isa=isa) for isa in SETS)
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
        for x, y in ((x, y) for other in others for x, y in zip(plain, other, strict=True)):
            assert (x.double() - y.double()).abs().max() <= tolerance * max(1.0, x.abs().max().item())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunks", [2, 3, 7, 64])
def test_a_cut_of_time_changes_nothing(name, chunks):
    for length in (1, 5, 64, 131):
        inputs, options = case_of(name, 2, length, 5, torch.float64)
        whole, cut = (both_ways(name, inputs, options, chunks=n) for n in (1, chunks))
        for x, y in zip(whole, cut, strict=True):
            assert (x - y).abs().max() <= 1e-11 * max(1.0, x.abs().max().item())


def test_a_cut_of_time_keeps_every_bit_of_a_bistable_state():
    inputs, options = case_of("memory_0", 1, 1000, 33, torch.bfloat16)
    whole, cut = (both_ways("memory_0", inputs, options, chunks=n) for n in (1, 13))
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])


def test_a_cut_of_time_carries_a_nan_up_to_the_next_document():
    """Also where the product of the decays in between is 0 in fp32."""
    a, b = torch.full((1, 400, 3), 0.1), torch.ones(1, 400, 3)
    reset = torch.zeros(1, 400, dtype=torch.bool)
    b[0, 10, 1] = math.nan
    for chunks in (1, 4):
        states, final = kernels.linear_forward(a, b, None, None, None, chunks=chunks)
        assert states[0, 10:, 1].isnan().all()
        assert final[0].isnan().tolist() == [False, True, False]
    reset[0, 250] = True
    for chunks in (1, 4):
        states, _ = kernels.linear_forward(a, b, None, reset, None, chunks=chunks)
        assert states[0, 10:250, 1].isnan().all()
        assert not states[0, 250:].isnan().any()


@pytest.mark.parametrize("arriving", [None, 1e-30])
def test_a_cut_of_time_where_decays_above_1_overflow(arriving):
    """Their product over a chunk is inf; the states need not be, nor the gradients."""
    a, b, grad = torch.full((1, 9000, 3), 1.05), torch.zeros(1, 9000, 3), torch.zeros(1, 9000, 3)
    b[0, 8990], grad[0, 10] = 1, 1
    first = None
    if arriving is not None:
        first = torch.full((1, 3), arriving)
        a[0, 2000:] = 0.9  # grows to 2e12, then falls to 0
        grad += arriving
    whole, cut = (kernels.linear_forward(a, b, first, None, None, chunks=n) for n in (1, 3))
    assert torch.equal(whole[0], cut[0])
    assert whole[0].isfinite().all()
    behind = [kernels.linear_backward(grad, None, a, whole[0], first, None, None, chunks=n) for n in (1, 3)]
    for x, y in zip(*behind, strict=True):
        if x is not None:
            assert x.isfinite().all()
            assert torch.equal(x, y)


def test_padding_may_hold_anything():
    inputs, options = case_of("linear", 2, 40, 6)
    clean = kernels.linear_forward(*inputs, **options)
    dirty = [x.clone() for x in inputs[:2]]
    for x in dirty:
        x[~options["mask"]] = math.nan
    for x, y in zip(clean, kernels.linear_forward(*dirty, inputs[2], **options), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", CASES)
def test_number_of_threads_changes_nothing(name):
    """(2, 4096, 48) is enough for both threads, and cut over rows."""
    inputs, options = case_of(name, 2, 4096, 48)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(both_ways(name, inputs, options))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(1, 1023, 70), (1, 257, 260), (1, 1801, 600), (3, 900, 400)], ids=str)
def test_every_cut_that_threads_get_changes_nothing(name, shape):
    """Over channels, over time in a half and quarters, over rows; the last two are too large for a cache."""
    inputs, options = case_of(name, *shape, torch.float64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(both_ways(name, inputs, options))
    finally:
        torch.set_num_threads(before)
    for cut in results[1:]:
        for x, y in zip(results[0], cut, strict=True):
            assert (x - y).abs().max() <= 1e-11 * max(1.0, x.abs().max().item())


def test_no_rows():
    b = torch.zeros(0, 300, 4)
    states, final = ops.linear_scan(b, b, path="cpu")
    assert (states.shape, final.shape) == ((0, 300, 4), (0, 4))
    lam = [torch.full((4,), 0.5, requires_grad=True) for _ in range(2)]
    states, _ = ops.lru_scan(tuple(lam), (b, b), path="cpu")
    grads = torch.autograd.grad(states[0].sum(), lam)
    assert all(torch.equal(grad, torch.zeros(4)) for grad in grads)


def test_slices_are_read_in_place():
    """The planes of one product, as the complex unit has them."""
    both = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(0))
    lam = torch.full((6,), 0.9), torch.full((6,), 0.1)
    views = kernels.lru_forward(*lam, both[..., :6], both[..., 6:], None, None, None, None)
    copies = kernels.lru_forward(*lam, both[..., :6].clone(), both[..., 6:].clone(), None, None, None, None)
    assert all(torch.equal(x, y) for x, y in zip(views, copies, strict=True))


@pytest.mark.parametrize("length", [1, 5])
def test_a_plane_that_torch_negates_late(length):
    """As it does the imaginary part of a conjugate: a view with a mark on it, where in memory stands the other sign."""
    generator = torch.Generator().manual_seed(0)
    b, s0 = (torch.randn(*shape, generator=generator) for shape in ((2, length, 3), (2, 3)))
    lam = torch.full((3,), 0.9), torch.full((3,), 0.1)
    late_b, late_s0 = torch._neg_view(b), torch._neg_view(s0)
    assert late_b.is_neg()
    for path in (None, "cpu"):
        got = ops.lru_scan(lam, (b, late_b), (s0, late_s0), path=path)
        want = ops.lru_scan(lam, (b, -b), (s0, -s0), path=path)
        for x, y in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            assert torch.equal(x, y)


def test_nothing_is_written_outside(monkeypatch):
    """Every output in the middle of a larger tensor of a number that no scan makes."""
    rooms = []

    def fenced(*shape, dtype=torch.float32, **kwargs):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = math.prod(shape)
        rooms.append((torch.full((count + 128,), 12345.0, dtype=dtype), count))
        return rooms[-1][0][64 : 64 + count].view(shape)

    def fenced_like(x, dtype=None, **kwargs):
        return fenced(x.shape, dtype=dtype or x.dtype)

    cases = [(name, *case_of(name, 2, 37, width)) for name in CASES for width in (1, 5, 130)]
    monkeypatch.setattr(kernels.torch, "empty", fenced)
    monkeypatch.setattr(kernels.torch, "empty_like", fenced_like)
    for name, inputs, options in cases:
        both_ways(name, inputs, options, chunks=3)
    assert len(rooms) > 60
    for room, count in rooms:
        assert bool((room[:64] == 12345).all())
        assert bool((room[64 + count :] == 12345).all())


def test_a_library_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(library, "source_hash", lambda: "0" * 16)
    library.library.cache_clear()
    try:
        with pytest.raises(Unavailable, match="other sources"):
            library.library()
    finally:
        library.library.cache_clear()


def test_a_missing_and_a_broken_library_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    for content, message in ((None, "C compiler"), (b"no library", "do not load")):
        if content is not None:
            (tmp_path / library.LIBRARY).write_bytes(content)
        library.library.cache_clear()
        try:
            with pytest.raises(Unavailable, match=message):
                library.library()
        finally:
            library.library.cache_clear()


def test_unknown_calls_are_refused_by_the_library():
    job = library._JOB.pack(1, 1, 1, *[0] * 30, 0.0, 0.0, 99, 0, 1, 0)
    assert library.library().code.hybridlm_scan(job, 0) == 1


def test_explain_names_the_instruction_set():
    assert SETS[-1] in ops.explain(path="cpu")
