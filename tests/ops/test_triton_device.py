"""How the Triton kernels are cut, compiled without a device, found missing, and what only a CUDA device can show."""

import sys
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from cases import CASES
from launching import launch
from triton_runs import DEVICE, MODULES, NAMES, assert_close, kernels_made, kernels_of, kernels_on, make, triton, wanted

from hybridlm import ops
from hybridlm.ops import explain
from hybridlm.ops import triton as path
from hybridlm.ops.errors import Unavailable
from hybridlm.ops.triton import plan
from hybridlm.ops.triton.plan import Plan

HOPPER = 132
"""Multiprocessors of an H100."""


def chosen(rows, length, width, dtype=torch.bfloat16, count=32):
    return plan.choose(torch.empty(rows, length, width, dtype=dtype, device="meta"), count)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 1000, 65537, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_plan_covers_time_once(length, dtype, monkeypatch):
    monkeypatch.setattr(plan, "multiprocessors", lambda device: HOPPER)
    for rows, width, count in ((1, 1, 16), (1, 256, 8), (8, 512, 16), (64, 2048, 16)):
        found = chosen(rows, length, width, dtype, count)
        assert found.steps % found.count == 0
        assert (found.chunks - 1) * found.steps < length <= found.chunks * found.steps
        assert found.block * dtype.itemsize >= plan.LINE


def test_time_is_split_only_where_channels_are_few(monkeypatch):
    monkeypatch.setattr(plan, "multiprocessors", lambda device: HOPPER)
    assert chosen(8, 4096, 2048).chunks == chosen(64, 65536, 512).chunks == 1, "enough programs without"
    assert chosen(4, 65536, 1024).chunks > 4
    assert chosen(1, 65536, 256).chunks > 64
    assert chosen(1, 64, 256).chunks == 1, "too short"


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A function that makes launches compile for an architecture, and run nowhere; what they gave is in its list."""
    found = []

    def compile_for(architecture):
        driver = SimpleNamespace(
            get_current_device=lambda: architecture,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", architecture, 32),
        )
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)

        def launch(kernel, grid):
            return lambda *args, **kwargs: found.append((kernel.fn, kernel.warmup(*args, grid=grid, **kwargs)))

        monkeypatch.setattr(triton.JITFunction, "__getitem__", launch)
        return found

    with kernels_made(interpret=False), triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        yield compile_for


@pytest.mark.parametrize(
    ("architecture", "dtype", "chunks"), [(90, torch.bfloat16, 2), (80, torch.float32, 1)], ids=str
)
def test_compiles_to_code_that_reads_whole_lines(architecture, dtype, chunks, compiled, monkeypatch):
    """Tiles of 2 steps, to be quick; what a step does is the same."""
    block = plan.LINE // dtype.itemsize
    monkeypatch.setattr(plan, "choose", lambda x, count: Plan(block, 2, chunks, 16 // chunks))
    found = compiled(architecture)
    for name in NAMES:
        # Width 64: every row begins at a multiple of 16 bytes, as in any model.
        kernels_on("cpu", name, *make(name, 16, 64, dtype))
    assert len(found) == len(NAMES) * (2 if chunks == 1 else 4)
    for fn, kernel in found:
        text, where = kernel.asm["ptx"], f"{fn.__module__}.{fn.__name__}"
        assert len(kernel.asm["cubin"]) > 0
        assert kernel.metadata.shared == 0, f"{where}: values change places through shared memory"
        assert "ld.global.b32" in text
        assert "ld.global.b16" not in text, f"{where}: two loads where one would do"
        assert "st.global.b16" not in text, where
        assert "atom." not in text
        assert "red." not in text


def test_says_why_it_cannot_run(monkeypatch):
    if DEVICE == "cpu":
        with pytest.raises(Unavailable, match="no CUDA device"):
            path.words()
    else:
        assert triton.__version__ in path.words()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(Unavailable, match=r"\[kernels\]"):
        path.words()


def test_no_module_of_ours_needs_triton_to_be_imported():
    """torch and transformers load it where it is installed; the kernels' modules load where it is not."""
    scans = ", ".join(f"hybridlm.ops.triton.{name}" for name in ("linear", "lru", "memory", "index"))
    code = (
        "import sys\nloaded = [name for name in sys.modules if name.split('.')[0] == 'triton']\n"
        "sys.modules |= dict.fromkeys(['triton', *loaded])\n"
        f"import hybridlm.ops, {scans}\n"
        f"assert not set({MODULES}) & set(sys.modules), 'kernels are made at the first call'\n"
        f"import {', '.join(MODULES)}\n"
    )
    done = launch(["-c", code], imported="libraries")
    assert done.returncode == 0, done.stderr


# What needs a device.

needs_device = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("name", [*NAMES, "memory_0", "memory_1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_reference_as_it_is_cut_on_the_device(name, dtype):
    for length, width in product((1, 2, 3, 63, 64, 65, 130, 1000), (1, 3, 64, 130)):
        case = make(name, length, width, dtype)
        assert_close(f"{name} {length} {width}", kernels_of(name, *case), wanted(name, *case), dtype)


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("name", NAMES)
def test_a_million_steps_twice_the_same_and_close_to_the_cpu(name):
    """In fp64, where the two differ by the order of sums alone."""
    from hybridlm.ops.dispatch import kernels

    case = make(name, 2**20, 2, torch.float64, rows=1)
    assert chosen_on_device(case[0]).chunks > 1
    once, again = kernels_of(name, *case), kernels_of(name, *case)
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
    inputs, options, _ = case
    flags = options["reset"], options["mask"]
    plain = kernels("torch")
    if name == "linear":
        want = plain["linear_forward"](*inputs, *flags)
    elif name == "lru":
        want = plain["lru_forward"](*inputs, *flags)
    else:
        want = plain["memory_forward"](*inputs[:3], 0.3, flags[0], inputs[3], flags[1])
    for x, y in zip(once, want, strict=False):
        assert (x - y).abs().max() <= 1e-10 * max(1.0, y.abs().max().item())


def chosen_on_device(inputs):
    x = next(x for x in inputs if x is not None and x.ndim == 3)
    return plan.choose(x.to(DEVICE), 16)


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("name", NAMES)
def test_never_waits_for_the_device(name):
    """A launch is captured in a CUDA graph, where waiting is an error; played back, it gives the same numbers."""
    inputs, options, grads = make(name, 4096, 64, torch.bfloat16)
    inputs, grads = ([x if x is None else x.to(DEVICE) for x in xs] for xs in (inputs, grads))
    options = {flag: x.to(DEVICE) for flag, x in options.items()}
    want = kernels_on(DEVICE, name, inputs, options, grads)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernels_on(DEVICE, name, inputs, options, grads)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_register_is_spilled(dtype, monkeypatch):
    found = []
    launch = triton.JITFunction.__getitem__
    monkeypatch.setattr(
        triton.JITFunction,
        "__getitem__",
        lambda kernel, grid: lambda *args, **kwargs: found.append(launch(kernel, grid)(*args, **kwargs)),
    )
    for name in NAMES:
        kernels_of(name, *make(name, 4096, 64, dtype))
    assert len(found) == 12, "time is split here, which takes all kernels"
    assert {kernel.name: kernel.n_spills for kernel in found if kernel.n_spills} == {}


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_is_what_runs_on_a_device(dtype):
    assert explain("cuda", dtype).startswith("triton: ")


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("name", NAMES)
def test_the_operators_give_what_they_give_on_the_cpu(name):
    """With gradients, through autograd and torch's own checks of what an operator returns."""
    inputs, options, grads = make(name, 65, 64, torch.float32)

    def run(device):
        leaves = [None if x is None else x.to(device).requires_grad_() for x in inputs]
        flags_there = {flag: x.to(device) for flag, x in options.items()}
        out = CASES[name][1](ops, leaves, **flags_there)
        found = torch.autograd.grad(out, leaves, [x.to(device) for x in grads])
        return [x.detach().cpu() for x in (*out, *found)]

    assert_close(name, run("cuda"), run("cpu"), torch.float32)
