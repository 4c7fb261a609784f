"""What the Triton kernels compute: on a CUDA device where there is one, else in Triton's interpreter."""

import math
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from triton_runs import DEVICE, NAMES, assert_close, cut_into, kernels_made, kernels_of, kernels_on, make, wanted

from hybridlm.ops import reference
from hybridlm.ops.triton import memory, plan

SHAPES = [(2, 1, 64), (2, 2, 3), (2, 3, 130), (1, 31, 1), (1, 32, 3), (1, 33, 64), (1, 66, 1)]
"""B, T, N. Where time is split, up to nine pieces."""


@pytest.fixture(scope="module")
def running():
    """Kernels that run here."""
    with kernels_made(interpret=True) if DEVICE == "cpu" else nullcontext():
        yield


@pytest.fixture(params=["whole", "split"])
def cut(request, monkeypatch, running):
    """Time in one piece, and in several."""
    monkeypatch.setattr(plan, "choose", cut_into(None if request.param == "whole" else 8))


@pytest.fixture
def split(monkeypatch, running):
    """Time in several pieces, which takes all kernels."""
    monkeypatch.setattr(plan, "choose", cut_into(8))


@pytest.mark.parametrize("name", NAMES)
def test_no_output_shares_memory_with_another_or_with_an_input(name, split):
    """An operator of torch may not return that."""
    inputs, options, grads = make(name, 16, 3, torch.float32)
    found = [x for x in kernels_on(DEVICE, name, inputs, options, grads) if x is not None]
    places = [x.untyped_storage().data_ptr() for x in [*found, *inputs, *grads] if x is not None]
    assert len(found) >= 5
    assert len({*places[: len(found)]}) == len(found)
    assert not {*places[: len(found)]} & {*places[len(found) :]}


@pytest.mark.parametrize(
    ("cut", "rows", "length", "width"),
    [("split", *shape) for shape in SHAPES] + [("whole", *shape) for shape in (*SHAPES[:3], SHAPES[5])],
    indirect=["cut"],
)
@pytest.mark.parametrize("name", NAMES)
def test_equals_reference(name, rows, length, width, cut):
    case = make(name, length, width, torch.float64, rows=rows)
    assert_close(name, kernels_of(name, *case), wanted(name, *case), torch.float64)


@pytest.mark.parametrize("name", ["linear", "lru", "memory_1"])
@pytest.mark.parametrize(("start", "reset", "mask"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_equals_reference_without_some_inputs(name, start, reset, mask, split):
    case = make(name, 18, 3, torch.float64, start, reset, mask, rows=1)
    got = kernels_of(name, *case)
    assert_close(name, got, wanted(name, *case), torch.float64)
    if name == "memory_1":
        assert got[-1] is None, "no gradient of reset_state without both reset and reset_state"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_reference_in_low_precision(name, dtype, split):
    case = make(name, 18, 5, dtype, rows=1)
    got = kernels_of(name, *case)
    assert_close(name, got, wanted(name, *case), dtype)
    assert all(x.dtype == (dtype if x.ndim == 3 else torch.float32) for x in got), "sums and final states stay wide"


@pytest.mark.parametrize(
    ("epsilon", "dtype"),
    [*product([0.0], [torch.float32, torch.bfloat16, torch.float16, torch.float64]), (1.0, torch.float32)],
    ids=str,
)
def test_exact_where_states_are_whole_numbers(epsilon, dtype, cut):
    """Bistable states, and counters: the same bits as the reference, whatever is cut where."""
    (c, beta, start, fresh), options, _ = make("memory_0", 25, 5, dtype)
    c[:, ::6] = 0
    beta[:, ::3] = c[:, ::3].abs()  # a tie writes, and the sign of 0 is +1
    want = reference.memory_scan(c, beta, start, epsilon=epsilon, reset_state=fresh, **options)
    c, beta, start, reset, fresh, mask = (
        x.to(DEVICE) for x in (c, beta, start, options["reset"], fresh, options["mask"])
    )
    got = memory.memory_forward(c, beta, start, epsilon, reset, fresh, mask)
    assert torch.equal(got[0].cpu(), want[0])
    assert torch.equal(got[1].cpu(), want[1])


def spread(x):
    """The same numbers, channels side by side, rows and steps far apart, and not where memory begins."""
    room = torch.full((x.shape[1], x.shape[0], x.shape[2] + 3), math.nan, dtype=x.dtype, device=DEVICE)
    view = room.transpose(0, 1)[..., 2:-1]
    view.copy_(x)
    return view


def across(x):
    """The same numbers, channels apart."""
    return x.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(("name", "layout"), [("linear", across), *((name, spread) for name in NAMES)])
def test_any_strides(name, layout, split):
    inputs, options, grads = make(name, 18, 5, torch.float64)
    want = kernels_of(name, inputs, options, grads)
    laid = [layout(x) if x is not None and x.ndim == 3 else x for x in inputs]
    turned = {name: flag.to(DEVICE).t().contiguous().t() for name, flag in options.items()}
    got = kernels_of(name, laid, turned, [layout(x) if x.ndim == 3 else x for x in grads])
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_gradient_of_a_sum_is_one_number_everywhere(split):
    inputs, options, grads = make("linear", 18, 5, torch.float64)
    grads[0] = torch.ones((), dtype=torch.float64, device=DEVICE).expand_as(grads[0])
    want = wanted("linear", inputs, options, [x.cpu() for x in grads])
    assert_close("linear", kernels_of("linear", inputs, options, grads), want, torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_channel_until_the_next_document(name, split):
    inputs, options, grads = make(name, 20, 3, torch.float64, reset=False, mask=False)
    clean = kernels_of(name, inputs, options, grads)[0]
    drive = next(x for x in inputs if x.ndim == 3)
    drive[0, 9, 1] = math.nan
    poisoned = torch.zeros(2, 20, 3, dtype=torch.bool)
    poisoned[0, 9:, 1] = True
    states = kernels_of(name, inputs, options, grads)[0]
    assert torch.equal(states.isnan(), poisoned)
    assert torch.equal(states[~poisoned], clean[~poisoned])

    options["reset"] = torch.zeros(2, 20, dtype=torch.bool)
    options["reset"][0, 15] = True
    poisoned[:, 15:] = False
    states, *rest = kernels_of(name, inputs, options, grads)
    assert torch.equal(states.isnan(), poisoned)
    final = rest[1] if name == "lru" else rest[0]
    assert not final.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_a_gradient_stays_in_its_channel_down_to_the_document_start(name, split):
    inputs, options, grads = make(name, 20, 3, torch.float64, reset=False, mask=False)
    options["reset"] = torch.zeros(2, 20, dtype=torch.bool)
    options["reset"][0, 5] = True
    grads[0][0, 14, 1] = math.nan
    poisoned = torch.zeros(2, 20, 3, dtype=torch.bool)
    poisoned[0, 5:15, 1] = True
    planes = 2 if name == "lru" else 1
    back = kernels_of(name, inputs, options, grads)[2 * planes :]
    if name == "lru":
        back = back[2:]  # the gradient of lambda is a sum over time
    assert torch.equal(back[0].isnan(), poisoned if name != "linear" else poisoned & ~options["reset"][..., None])
    assert not back[2].isnan().any(), "the gradient of the initial state, behind the document start"


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_anything(name, split):
    inputs, options, grads = make(name, 20, 3, torch.float64)
    want = kernels_of(name, inputs, options, grads)
    for x in inputs:
        if x is not None and x.ndim == 3:
            x[~options["mask"]] = math.nan
    got = kernels_of(name, inputs, options, grads)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.fixture
def rooms(monkeypatch):
    """Every tensor from `torch.empty` is poisoned, and lies in a larger one of these, poisoned too."""
    rooms, real = [], torch.empty

    def fenced(*shape, **kind):
        shape = torch.Size(shape if isinstance(shape[0], int) else shape[0])
        room = real(shape.numel() + 512, **kind).fill_(77 if kind["dtype"] == torch.uint8 else math.nan)
        rooms.append(room)
        return room[256:-256].view(shape)

    monkeypatch.setattr(torch, "empty", fenced)
    return rooms


@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_written_and_nothing_beside_it(name, split, rooms):
    case = make(name, 18, 5, torch.float64)
    assert_close(name, kernels_of(name, *case), wanted(name, *case), torch.float64)
    assert len(rooms) >= 5 + 4, "outputs, and a summary of every chunk each way"
    for room in rooms:
        fence = torch.cat([room[:256], room[-256:]])
        assert (fence == 77).all() if room.dtype == torch.uint8 else fence.isnan().all()


@pytest.mark.skipif(DEVICE != "cpu", reason="asks the interpreter")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_outside_the_tensors(name, split, rooms, monkeypatch):
    """Not where the value would be thrown away either: there may be no memory."""
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    bounds = []
    run, load = InterpretedFunction.run, InterpreterBuilder.create_masked_load

    def noting(kernel, *args, **kwargs):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        bounds[:] = [(x.data_ptr(), x[tuple(n - 1 for n in x.shape)].data_ptr()) for x in tensors]
        return run(kernel, *args, **kwargs)

    def checking(builder, pointers, mask, *rest):
        for address in pointers.data[mask.data].flatten().tolist():
            assert any(first <= address <= last for first, last in bounds)
        return load(builder, pointers, mask, *rest)

    monkeypatch.setattr(InterpretedFunction, "run", noting)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checking)
    for length in (3, 18):  # a tile that is the whole chunk, and several
        kernels_of(name, *make(name, length, 5, torch.float64))
    assert bounds


@pytest.mark.parametrize(("rows", "width"), [(0, 3), (2, 0)])
def test_nothing_to_do(rows, width, running):
    """A batch of no rows, and no channels."""
    got = kernels_of("linear", *make("linear", 4, width, torch.float32, rows=rows))
    long, wide = (rows, 4, width), (rows, width)
    assert [tuple(x.shape) for x in got] == [long, wide, long, long, wide]
