"""The scan of finite-state heads on every path: states to the bit, the surrogate gradient by dense float64 algebra."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from index_scans import by_hand, case, dense, dense_gradient, identity, random_scan

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.errors import UserError
from hybridlm.model import indexmaps_hybridlm, indexscan_hybridlm, seam_hybridlm
from hybridlm.model.indexscan_hybridlm import index_scan
from hybridlm.ops import index, reference
from hybridlm.ops.cpu import index as compiled
from hybridlm.ops.cpu import library

COMPILED = ops.explain().startswith("cpu")
needs_c = pytest.mark.skipif(not COMPILED, reason="the C kernels cannot run here")
PATHS = ["reference", "torch", pytest.param("cpu", marks=needs_c)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Of the largest gradient of theta: the rounding of its storage."""
SETS = library.SETS[: library.library().best + 1] if COMPILED else ()


def gradients(given, grad, path):
    """h, states, and the gradients of theta, bias and values."""
    leaves = {name: given[name].clone().requires_grad_() for name in ("theta", "bias", "values")}
    h, states = index_scan(**{**given, **leaves}, path=path)
    return h.detach(), states, *torch.autograd.grad(h, list(leaves.values()), grad)


@pytest.mark.parametrize("flags", [False, True])
def test_the_states_of_the_reference_are_those_of_a_loop(flags):
    drive, start, reset, mask = random_scan(40, flags=flags)
    found = reference.index_scan(drive, start.long(), reset=reset, mask=mask)
    assert torch.equal(found, by_hand(drive, start, reset, mask))


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_the_gradient_of_the_reference_is_the_formula(length, flags):
    drive, start, reset, mask = random_scan(length, flags=flags)
    grad = torch.randn(*drive.shape[:-1], dtype=torch.float64)
    found = reference.index_scan_backward(grad, drive, start, reset=reset, mask=mask)
    assert torch.allclose(found, dense_gradient(drive, start, grad, reset, mask), atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "n", "d"), [(1, 2, 1), (2, 3, 4), (33, 8, 3), (40, 17, 1)])
@pytest.mark.parametrize("flags", [False, True])
def test_every_path_is_the_formula(path, dtype, length, n, d, flags):
    given, grad = case(length, n, d, dtype, noisy=flags, flags=flags, rows=2)
    h, states, *found = gradients(given, grad, path)
    want_h, want_states, *want = dense(given, grad)
    assert torch.equal(states.long(), want_states)
    assert torch.equal(h.double(), want_h)
    assert [x.dtype for x in (h, *found)] == [given["values"].dtype, dtype, *(given["values"].dtype,) * 2]
    for x, y, tolerance in zip(found, want, (TOLERANCE[dtype], *(TOLERANCE[h.dtype],) * 2), strict=True):
        assert (x.double() - y).abs().max() <= tolerance * max(1.0, y.abs().max().item())
    with torch.no_grad():
        short = index_scan(**given, path=path)
    assert torch.equal(short[0], h)
    assert torch.equal(short[1], states)


@needs_c
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2, 8, 33, 256])
def test_instruction_sets_agree(dtype, n):
    given, grad = case(9, n, 3, dtype, rows=2)
    order = [given[x] for x in ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")]
    results = []
    for isa in SETS:
        h, states, p, maps = compiled.index_forward(*order, True, isa=isa)
        back = compiled.index_backward(grad, p, maps, states, *order[3:], dtype, isa=isa)
        results.append((states, maps, h, p, *back))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other[:3], results[0][:3], strict=True))
        for x, y in zip(other[3:], results[0][3:], strict=True):
            assert (x.double() - y.double()).abs().max() <= TOLERANCE[dtype] * max(1.0, y.abs().max().item())


@needs_c
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_threads_change_no_bit(rows):
    """Of one row the heads are cut, of three both, of forty the rows, whose sums are of sixteen groups."""
    given, grad = case(300 if rows < 40 else 70, 8, 3, torch.float32, rows=rows)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients(given, grad, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_signed_zeros_tie_and_infinities_are_numbers(path):
    theta = torch.full((1, 6, 1, 3, 3), -1.0)
    theta[0, 0, 0, 0] = torch.tensor([-1.0, -0.0, 0.0])  # equal: the first
    theta[0, 1, 0, 1] = torch.tensor([1.0, 2.0, math.inf])
    theta[0, 2, 0, 2] = torch.tensor([-math.inf, -3e38, -math.inf])
    theta[0, 3, 0, 1] = torch.tensor([-math.inf, -math.inf, -math.inf])
    theta[0, 4, 0, 0] = torch.tensor([1.0, math.inf, math.inf])
    theta[0, 5, 0, 1] = torch.tensor([-1e-45, -1.0, 1e-45])
    h, states = index_scan(theta, identity(theta), torch.zeros(1, 1, dtype=torch.uint8), path=path)
    assert states.flatten().tolist() == [1, 2, 1, 0, 1, 2]
    assert torch.equal(h, torch.nn.functional.one_hot(states.long(), 3).float())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_is_the_largest_and_shows_where_it_was_read(path, sign):
    given, grad = case(12, flags=False, noisy=False, dtype=torch.float32)
    _, clean = index_scan(**given, path=path)
    read = int(clean[1, 5, 1])
    nan = torch.tensor(math.copysign(math.nan, sign))
    given["theta"][1, 6, 1, read, 2:4] = nan
    given["theta"][1, 6, 1, (read + 1) % 5] = nan
    h, states, *found = gradients(given, grad, path)
    assert int(states[1, 6, 1]) == 2
    where = torch.zeros_like(h, dtype=torch.bool)
    where[1, 6, 1] = True
    assert torch.equal(h.isnan(), where)
    assert torch.equal(found[0].isnan().any(-1).nonzero(), torch.tensor([[1, 6, 1, read]]))
    given["mask"] = torch.ones(3, 12, dtype=torch.bool)
    given["mask"][1, 6] = False
    assert not any(x.isnan().any() for x in gradients(given, grad, path))


@pytest.mark.parametrize("path", PATHS)
def test_padding_has_no_gradient_whatever_comes_later(path):
    given, grad = case(12, dtype=torch.float32)
    given["reset"], given["mask"] = None, torch.ones(3, 12, dtype=torch.bool)
    given["mask"][:, 5:7] = False
    grad[:, 9] = math.nan
    theta = gradients(given, grad, path)[2]
    assert not theta[:, 5:7].any()
    assert theta[:, 8].isnan().any()
    assert not theta[:, 10:].isnan().any()


@pytest.mark.parametrize("path", PATHS)
def test_a_nan_in_a_gradient_goes_back_to_the_document_start(path):
    given, grad = case(70, dtype=torch.float32)
    given["reset"], given["mask"] = torch.zeros(3, 70, dtype=torch.bool), None
    given["reset"][:, 31] = True
    grad[0, 60] = math.nan
    lost = gradients(given, grad, path)[2].isnan().any(-1).any(-1)
    assert lost[0, 31:61].all()
    assert lost.sum() == 30 * 2


@needs_c
def test_maps_have_the_flags_worked_in():
    """As parts of a sequence pass them on."""
    given, _ = case(40)
    order = [given[x] for x in ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")]
    maps = [module.index_forward(*order, True)[3] for module in (compiled, indexmaps_hybridlm)]
    assert torch.equal(*maps)


@needs_c
def test_strides_and_other_memory_change_nothing():
    given, grad = case(21)
    want = gradients(given, grad, "cpu")
    spread = dict(given)
    spread["theta"] = given["theta"].transpose(0, 1).contiguous().transpose(0, 1)
    spread["values"] = given["values"].transpose(1, 2).contiguous().transpose(1, 2)
    spread["reset"], spread["mask"] = (given[name].t().contiguous().t() for name in ("reset", "mask"))
    spread["initial_state"] = given["initial_state"].repeat_interleave(2, 1)[:, ::2]
    found = gradients(spread, grad.transpose(0, 2).contiguous().transpose(0, 2), "cpu")
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))


@needs_c
@pytest.mark.parametrize(("rows", "length", "n"), [(3, 37, 5), (2, 5, 47), (17, 3, 2)])
def test_every_output_is_written_and_nothing_beside_it(rows, length, n, monkeypatch):
    given, grad = case(length, n, 3, torch.float32, rows=rows)
    want, rooms, real = gradients(given, grad, "torch"), [], torch.empty

    def fenced(*shape, dtype):
        shape = torch.Size(shape if isinstance(shape[0], int) else shape[0])
        room = real(shape.numel() + 128, dtype=dtype).fill_(77 if dtype == torch.uint8 else math.nan)
        rooms.append(room)
        return room[64:-64].view(shape)

    order = [given[x] for x in ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")]
    monkeypatch.setattr(compiled.torch, "empty", fenced)
    h, states, p, maps = compiled.index_forward(*order, True)
    compiled.index_forward(*order, False)
    found = h, states, *compiled.index_backward(grad, p, maps, states, *order[3:], torch.float32)
    for x, y in zip(found, want, strict=True):
        assert (x.double() - y.double()).abs().max() <= 1e-5 * max(1.0, y.double().abs().max().item())
    assert len(rooms) == 4 + 4 + 3
    for room in rooms:
        fence = torch.cat([room[:64], room[-64:]])
        assert (fence == 77).all() if room.dtype == torch.uint8 else fence.isnan().all()


@needs_c
def test_a_state_that_is_none_is_refused_and_nothing_read():
    given, _ = case(4)
    given["initial_state"][1, 1] = 5
    with pytest.raises(RuntimeError, match="an initial state is none of its head"):
        index_scan(**given, path="cpu")


@needs_c
def test_no_rows():
    given, grad = case(4)
    empty = {name: given[name][:0] for name in ("theta", "noise", "initial_state", "reset", "mask")}
    h, states, *found = gradients({**given, **empty}, grad[:0], "cpu")
    assert (h.shape, states.shape, found[0].shape) == ((0, 4, 2, 3), (0, 4, 2), (0, 4, 2, 5, 5))
    assert not any(x.any() for x in found[1:])


@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_of_the_forward(keep):
    given, _ = case(6)
    order = [given[x] for x in ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")]
    for i in (0, 1, 3):
        order[i].requires_grad_(keep)
    torch.library.opcheck(index.index_forward, [*order, keep, ""])


def test_opcheck_of_the_backward():
    given, grad = case(6)
    order = [given[x] for x in ("theta", "bias", "noise", "values", "initial_state", "temperature", "reset", "mask")]
    _, states, p, maps = index.index_forward(*order, True, "")
    torch.library.opcheck(index.index_backward, [grad, p, maps, states, *order[3:], torch.float64, ""])


def test_without_a_bias_or_with_values_alone():
    given, grad = case(6)
    given["bias"] = None
    values = given["values"].requires_grad_()
    for path in (None, "torch", "reference"):
        h, _ = index_scan(**given, path=path)
        (found,) = torch.autograd.grad(h, values, grad)
        want = dense({**given, "bias": torch.zeros(2, 5, 5, dtype=torch.float64), "values": values.detach()}, grad)[-1]
        assert torch.allclose(found, want)


def test_a_second_derivative_is_refused():
    given, _ = case(6)
    theta = given["theta"].requires_grad_()
    h, _ = index_scan(**given)
    (found,) = torch.autograd.grad(h.square().sum(), theta, create_graph=True)
    with pytest.raises(RuntimeError, match="a surrogate, which has no derivative"):
        torch.autograd.grad(found.sum(), theta)


def test_without_the_package_the_same_in_pure_pytorch(monkeypatch):
    """As a checkpoint that carries its own code has it."""
    given, grad = case(20)
    want = gradients(given, grad, "torch")
    monkeypatch.setattr(indexscan_hybridlm, "index", None)
    assert all(torch.equal(x, y) for x, y in zip(gradients(given, grad, None), want, strict=True))
    assert torch.equal(index_scan(**given)[0], want[0])
    with pytest.raises(ValueError, match="without the hybridlm package there is only 'torch'"):
        index_scan(**given, path="cpu")


def test_the_seam_is_open():
    assert seam_hybridlm.index is index
    assert ops.index_scan is index_scan


@pytest.fixture
def fresh():
    index._wrong.cache_clear()
    yield
    index._wrong.cache_clear()


@needs_c
@pytest.mark.parametrize("which", range(7))
def test_a_wrong_kernel_is_passed_over_for_this_scan_alone(fresh, monkeypatch, caplog, which):
    def forward(*args):
        h, states, p, maps = compiled.index_forward(*args)
        states = (states + (which == 1)) % 5
        return h * (1 + 1e-3 * (which == 0)), states, p * (1 + 1e-3 * (which == 2)), maps * (which != 3)

    def backward(*args):
        return [x * (1 + 1e-3 * (which == 4 + i)) for i, x in enumerate(compiled.index_backward(*args))]

    broken = SimpleNamespace(index_forward=forward, index_backward=backward)
    modules = {index._MODULES["cpu"]: broken, index._MODULES["torch"]: indexmaps_hybridlm}
    monkeypatch.setattr(index, "import_module", modules.__getitem__)
    given, grad = case(20, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "hybridlm.ops"):
        found = gradients(given, grad, None)
    assert all(torch.equal(x, y) for x, y in zip(found, gradients(given, grad, "torch"), strict=True))
    assert "finite-state heads run in pure PyTorch, which is slower: index_scan is off by" in caplog.text
    with pytest.raises(UserError, match="path='cpu': its kernels of index_scan cannot run here"):
        index_scan(**given, path="cpu")
    assert ops.explain().startswith("cpu")


def test_a_model_is_the_same_on_every_path():
    torch.manual_seed(0)
    options = {"hidden_size": 24, "vocab_size": 30, "nfsm_heads": 4, "nfsm_states": 5}
    model = HybridLMForCausalLM(HybridLMConfig(pattern="nfsm nfsm", **options)).double()
    model.set_exploration(1.0)
    ids, results = torch.randint(30, (2, 60)), []
    for path in ("reference", "torch", *(["cpu"] if COMPILED else [])):
        with ops.using(path):
            model.zero_grad()
            torch.manual_seed(4)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)
