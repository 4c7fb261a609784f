"""The benchmark of the scans: what is wrong is refused, bytes and ratios are counted rightly, forms agree."""

import pytest
import torch

from hybridlm.bench import kernels
from hybridlm.bench.operations import BOTH, FORWARD, OPERATIONS, PURE, too_large
from hybridlm.errors import UserError

CPU = torch.device("cpu")
SHAPE = (2, 33, 5)


def measured(*, operations=("linear", "lru", "memory"), dtype=torch.float32, shapes=(SHAPE,), rounds=1, **options):
    return kernels.measure(CPU, dtype, shapes, rounds=rounds, copy_bytes=2**16, operations=operations, **options)


@pytest.fixture(scope="module")
def result():
    return measured()


def test_every_way_is_measured_and_right(result):
    assert result["refused"] == result["skipped"] == []
    compiled = "cpu" not in result["absent"]
    for name, operation in OPERATIONS.items():
        expected = set(operation.ways(["torch", "cpu"] if compiled else ["torch"]))
        for direction in (FORWARD, BOTH):
            ways = {r["way"] for r in result["rows"] if (r["operation"], r["direction"]) == (name, direction)}
            assert ways == expected
    pure = {name: len(set(operation.ways(["torch"])) & set(PURE)) for name, operation in OPERATIONS.items()}
    assert pure == {"linear": 3, "lru": 3, "memory": 4}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_right(dtype):
    assert measured(dtype=dtype)["refused"] == []


@pytest.mark.parametrize("steps", [1, 2, kernels.SHORT + 5])
def test_any_length_is_right_whatever_the_truth_is_taken_from(steps):
    assert measured(shapes=[(1, steps, 3)])["refused"] == []


def test_the_truth_is_the_same_in_blocks(monkeypatch):
    operation = OPERATIONS["lru"]
    inputs = operation.make(SHAPE, torch.float32, CPU)
    arriving = kernels._arriving(operation, inputs, SHAPE, torch.float32, CPU)
    assert set(arriving) == {"states_re", "states_im"}
    whole = kernels.truth(operation, inputs, arriving)
    monkeypatch.setitem(kernels.BLOCK, "cpu", 2 * 33 * 2)  # two channels of five at a time
    blocks = kernels.truth(operation, inputs, arriving)
    assert set(whole) == {"states_re", "states_im", "final_re", "final_im", "d b_re", "d b_im", "d lam_re", "d lam_im"}
    for name, x in whole.items():  # fp64: sums over rows are taken in another order
        assert torch.allclose(x, blocks[name], rtol=1e-12, atol=1e-12)


def broken(monkeypatch, name, way, change):
    """One way of an operation, changed."""
    right = OPERATIONS[name].others[way]
    monkeypatch.setitem(OPERATIONS[name].others, way, lambda inputs: change(right(inputs)))


def nudged(x):
    return x + 1e-3 * x.detach().abs().max()


@pytest.mark.parametrize(
    ("name", "way", "change", "what"),
    [
        ("linear", "doubling", lambda out: out | {"states": nudged(out["states"])}, "states is off by"),
        ("linear", "doubling", lambda out: out | {"final": out["final"] * float("nan")}, "final is off by nan"),
        ("lru", "associative", lambda out: out | {"states_im": -out["states_im"]}, "states_im is off by"),
        ("memory", "gates + torch", lambda out: out | {"states": out["states"] * (1 + 1e-6)}, "values differ"),
    ],
)
def test_what_is_wrong_is_not_timed(monkeypatch, name, way, change, what):
    broken(monkeypatch, name, way, change)
    result = measured(operations=(name,))
    assert {entry["direction"] for entry in result["refused"]} == {FORWARD, BOTH}
    assert all(entry["way"] == way and what in entry["why"] for entry in result["refused"])
    assert result["rows"]
    assert way not in {row["way"] for row in result["rows"]}
    assert f"WRONG, not timed: {name} 2x33x5 forward {way}" in kernels.table(result)


class Leak(torch.autograd.Function):
    """Adds nothing forward; hands on a gradient all the same."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_wrong_gradient_alone_is_found(monkeypatch):
    broken(monkeypatch, "linear", "doubling", lambda out: out | {"states": out["states"] + Leak.apply(out["states"])})
    result = measured(operations=("linear",))
    assert [(entry["direction"], entry["way"]) for entry in result["refused"]] == [(BOTH, "doubling")]
    assert "d a is off by" in result["refused"][0]["why"]


def test_a_path_that_the_dispatcher_found_wrong_is_refused(monkeypatch):
    def choose(device, dtype, path):
        if path != "torch":
            raise ValueError("the cpu kernels disagree with the reference on this machine: linear_scan is off by 1")

    monkeypatch.setattr(kernels, "choose", choose)
    usable, absent, wrong = kernels.paths_on(CPU, torch.float32)
    assert (usable, absent, set(wrong)) == (["torch"], {}, {"cpu", "triton"})
    result = measured(operations=("linear",))
    assert {entry["way"] for entry in result["refused"]} == {"cpu", "triton"}
    assert "WRONG, not timed: cpu: " in kernels.table(result)


def test_bytes_and_ratios():
    seconds = {"copy": [1.0, 2.0, 1.0], "fresh copy": [2.0] * 3, "cpu": [0.5, 1.0, 0.5], "torch": [2.0, 3.0, 2.0]}
    seconds |= {"doubling": [4.0, 4.0, 4.0], "associative": []}
    moved = OPERATIONS["lru"].bytes(BOTH, (2, 3, 5), torch.bfloat16)
    assert moved == 10 * 30 * 2
    assert OPERATIONS["linear"].bytes(FORWARD, (2, 3, 5), torch.float32) == 3 * 30 * 4
    assert OPERATIONS["memory"].bytes(BOTH, (2, 3, 5), torch.float32) == 8 * 30 * 4
    rows = {row["way"]: row for row in kernels._rows(seconds, moved, copy_bytes=300, cache=1000)}
    assert list(rows) == ["cpu", "torch", "doubling"]
    cpu = rows["cpu"]
    assert (cpu["ms"], cpu["ms_lowest"], cpu["gb_s"]) == (500.0, 500.0, 600 / 0.5 / 1e9)
    # The copy moves 2 * 300 bytes, as many as the scan, in twice the time; torch takes 3 to 4 times as long.
    assert (cpu["of_copy"], cpu["times_pure"], cpu["best_pure"]) == (2.0, 4.0, "torch")
    assert (rows["torch"]["times_pure"], rows["doubling"]["times_pure"]) == (1.0, 0.5)
    assert (cpu["copy_gb_s"], cpu["fresh_copy_gb_s"], cpu["past_cache"]) == (6e-7, 3e-7, False)


def test_what_takes_too_long_or_too_much_is_left_out(monkeypatch):
    result = measured(operations=("linear",), limit=1e-9)
    assert result["rows"] == []
    assert {entry["why"] for entry in result["skipped"]} == {"over the limit of 1e-09 s"}
    monkeypatch.setattr("hybridlm.bench.operations.total_memory", lambda device: 2**20)
    assert "would keep" in too_large("gates + doubling", BOTH, (8, 1024, 512), CPU)
    assert too_large("torch", BOTH, (8, 1024, 512), CPU) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"shapes": [(2, 0, 3)]}, "shape=2x0x3: B, T and N must be at least 1"),
        ({"limit": 0.0}, "limit=0.0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(UserError, match=message):
        measured(**options)


def test_a_shape_that_is_given_twice_is_measured_once():
    result = measured(operations=("linear",), shapes=[SHAPE, (1, 4, 2), SHAPE])
    rows = [(row["way"], row["direction"], tuple(row["shape"])) for row in result["rows"]]
    assert len(rows) == len(set(rows))
    assert {shape for *_, shape in rows} == {SHAPE, (1, 4, 2)}
