"""The Triton kernels of finite-state heads: on a CUDA device where there is one, else in Triton's interpreter."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from index_scans import case, dense
from triton_runs import DEVICE, kernels_made, triton

from hybridlm.model import indexmaps_hybridlm as pure
from hybridlm.ops.triton import index

ORDER = ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Of the largest gradient of theta: two roundings of its storage, since the interpreter cuts bits off."""


@pytest.fixture(scope="module")
def running():
    """Kernels that run here."""
    with kernels_made(interpret=True) if DEVICE == "cpu" else nullcontext():
        yield


@pytest.fixture(params=[None, 3], ids=["whole", "split"])
def cut(request, monkeypatch, running):
    """Time in one piece, and in chunks."""
    steps = request.param
    chosen = (lambda length, *_: (1, length)) if steps is None else (lambda length, *_: (-(-length // steps), steps))
    monkeypatch.setattr(index, "split", chosen)


def there(x):
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def both_ways(module, given, grad, keep=True):
    """h, states, p, maps, and the gradients of theta, bias and values, brought back."""
    order = [there(given[name]) for name in ORDER]
    found = list(module.index_forward(*order, keep))
    if keep:
        _, states, p, maps = found
        found += module.index_backward(there(grad), p, maps, states, *order[3:], given["theta"].dtype)
    return [x.cpu() for x in found]


SHAPES = [(torch.float64, 1, 2, 1, True), (torch.float64, 2, 3, 4, False), (torch.float64, 8, 5, 3, True)]


@pytest.mark.parametrize(
    ("dtype", "length", "n", "d", "flags"), SHAPES + [(dtype, 5, 4, 1, True) for dtype in list(TOLERANCE)[1:]], ids=str
)
def test_is_the_formula(cut, dtype, length, n, d, flags):
    given, grad = case(length, n, d, dtype, noisy=flags, flags=flags, rows=2)
    h, states, p, maps, *found = both_ways(index, given, grad)
    want_h, want_states, *want = dense(given, grad)
    assert torch.equal(states.long(), want_states)
    assert torch.equal(h.double(), want_h)
    assert torch.equal(maps, both_ways(pure, given, grad)[3])
    assert [x.dtype for x in (h, p, *found)] == [given["values"].dtype] * 2 + [dtype] + [given["values"].dtype] * 2
    for x, y, tolerance in zip(found, want, (TOLERANCE[dtype], *(TOLERANCE[h.dtype],) * 2), strict=True):
        assert (x.double() - y).abs().max() <= tolerance * max(1.0, y.abs().max().item())
    short = both_ways(index, given, grad, keep=False)
    assert torch.equal(short[0], h)
    assert torch.equal(short[1], states)
    assert short[2].numel() == short[3].numel() == 0


def test_a_nan_in_a_gradient_goes_back_to_the_document_start(cut):
    given, grad = case(8, 3, 2, rows=1)
    given["reset"], given["mask"] = torch.zeros(1, 8, dtype=torch.bool), None
    given["reset"][:, 4] = True
    grad[0, 7] = math.nan
    lost = both_ways(index, given, grad)[4].isnan().any(-1).any(-1)
    assert lost[0, 4:].all()
    assert not lost[0, :4].any()


def test_many_states_take_several_tiles(cut):
    given, grad = case(2, 70, 2, torch.float32, rows=1)
    for x, y in zip(both_ways(index, given, grad), both_ways(pure, given, grad), strict=True):
        assert (x.double() - y.double()).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of inf - inf in the interpreter
def test_without_bias_and_with_zeros_infinities_and_nan(cut):
    given, grad = case(5, 4, 2, torch.float32, noisy=False, flags=False, rows=2)
    given["bias"] = None
    given["theta"][0, 0, 0] = torch.tensor([-1.0, -0.0, 0.0, -2.0])
    given["theta"][0, 1, 0] = torch.tensor([-math.inf, -math.inf, -math.inf, -math.inf])
    given["theta"][0, 2, 0] = torch.tensor([0.0, math.inf, 1.0, math.inf])
    given["theta"][1, 4, 1] = torch.tensor([0.0, math.inf, math.nan, math.nan])
    found, want = both_ways(index, given, grad, keep=False), both_ways(pure, given, grad, keep=False)
    assert torch.equal(found[1], want[1])
    assert found[1][0, :3, 0].tolist() == [1, 0, 1]
    assert int(found[1][1, 4, 1]) == 2
    assert torch.equal(found[0].isnan(), want[0].isnan())
    assert found[0].isnan().sum() == 2
    found, want = both_ways(index, given, grad), both_ways(pure, given, grad)
    assert torch.equal(found[4].isnan(), want[4].isnan())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_padding_may_hold_anything(cut):
    given, grad = case(6, 3, 2, torch.float32, rows=2, seed=3)
    assert not given["mask"].all()
    want = both_ways(index, given, grad)
    for name in ("theta", "noise"):
        given[name][~given["mask"]] = math.nan
    found = both_ways(index, given, grad)
    for i in (0, 1, 3, 4, 5, 6):  # p of padding is whatever
        assert torch.equal(found[i], want[i])


def test_every_output_is_written_and_nothing_beside_it(cut, monkeypatch):
    given, grad = case(5, 5, 3, torch.float32, rows=1)
    want, rooms, real = both_ways(pure, given, grad), [], torch.empty

    def fenced(*shape, **kind):
        shape = torch.Size(shape if isinstance(shape[0], int) else shape[0])
        room = real(shape.numel() + 512, **kind).fill_(77 if kind["dtype"] == torch.uint8 else math.nan)
        rooms.append(room)
        return room[256:-256].view(shape)

    monkeypatch.setattr(torch, "empty", fenced)
    for x, y in zip(both_ways(index, given, grad), want, strict=True):
        assert (x.double() - y.double()).nan_to_num(9).abs().max() <= 1e-5 * max(1.0, y.double().abs().max().item())
    assert len(rooms) >= 6
    for room in rooms:
        fence = torch.cat([room[:256], room[-256:]])
        assert (fence == 77).all() if room.dtype == torch.uint8 else fence.isnan().all()


def test_no_rows(running):
    given, grad = case(4, 3, 2)
    empty = {name: given[name][:0] for name in ("theta", "noise", "initial_state", "reset", "mask")}
    h, states, *_, grad_bias, grad_values = both_ways(index, {**given, **empty}, grad[:0])
    assert (h.shape, states.shape) == ((0, 4, 2, 2), (0, 4, 2))
    assert not grad_bias.any()
    assert not grad_values.any()


def test_a_cut_covers_time_once(monkeypatch):
    monkeypatch.setattr(index, "multiprocessors", lambda device: 132)
    for length in (1, 2, 63, 64, 1000, 65537, 2**20):
        for programs in (1, 8, 128, 4096):
            chunks, steps = index.split(length, programs, torch.device("cpu"))
            assert (chunks - 1) * steps < length <= chunks * steps
    assert index.split(4096, 4096, torch.device("cpu")) == (1, 4096)
    assert index.split(65536, 8, torch.device("cpu"))[0] > 64


@pytest.mark.parametrize(("dtype", "n", "chunks"), [(torch.bfloat16, 8, 2), (torch.float32, 70, 1)], ids=str)
def test_compiles_without_a_device(dtype, n, chunks, monkeypatch, tmp_path):
    found = []
    driver = SimpleNamespace(
        get_current_device=lambda: 90,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(index, "split", lambda length, *_: (chunks, length // chunks))
    given, grad = case(8, n, 4, dtype, rows=1)
    with kernels_made(interpret=False), triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)

        def launch(kernel, grid):
            return lambda *args, **kwargs: found.append((kernel.fn, kernel.warmup(*args, grid=grid, **kwargs)))

        monkeypatch.setattr(triton.JITFunction, "__getitem__", launch)
        order = [given[name] for name in ORDER]
        _, states, p, maps = index.index_forward(*order, True)
        index.index_backward(grad, p, maps, states.zero_(), *order[3:], dtype)
    assert len(found) == (7 if chunks > 1 else 5)
    for fn, kernel in found:
        text, where = kernel.asm["ptx"], fn.__name__
        assert len(kernel.asm["cubin"]) > 0, where
        assert "atom." not in text, where
        assert "red.global" not in text, where


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_long_scans_on_the_device(dtype):
    """As they are cut there; twice the same bits."""
    for length, n in ((1000, 8), (65537, 4), (130, 64)):
        given, grad = case(length, n, 8, dtype, rows=1)
        found, again, want = (both_ways(module, given, grad) for module in (index, index, pure))
        assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
        assert all(torch.equal(found[i], want[i]) for i in (0, 1, 3))
        for i in (4, 5, 6):
            tolerance = TOLERANCE[dtype if i == 4 else found[0].dtype]
            scale = max(1.0, want[i].double().abs().max().item())
            assert (found[i].double() - want[i].double()).abs().max() <= tolerance * scale
