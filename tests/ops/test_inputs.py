"""What the scans refuse: whatever is no dense floating-point tensor on the device of the others, by name."""

import numpy as np
import pytest
import torch

from hybridlm import ops

X, STATE = torch.rand(2, 5, 3), torch.zeros(2, 3)
CALLS = {
    "a": lambda x: ops.linear_scan(x, X),
    "b": lambda x: ops.linear_scan(X, x),
    "initial_state": lambda x: ops.linear_scan(X, X, x),
    "decay (imaginary)": lambda x: ops.lru_scan((X[0, 0], x), (X, X)),
    "b (imaginary)": lambda x: ops.lru_scan((X[0, 0], X[0, 0]), (X, x)),
    "initial_state (real)": lambda x: ops.lru_scan((X[0, 0], X[0, 0]), (X, X), (x, STATE)),
    "c": lambda x: ops.memory_scan(x, X),
    "beta": lambda x: ops.memory_scan(X, x),
    "reset_state": lambda x: ops.memory_scan(X, X, reset_state=x),
}
RIGHT = {"decay (imaginary)": X[0, 0], "initial_state": STATE, "initial_state (real)": STATE, "reset_state": X[0, 0]}


def refused(name, value):
    """The message of the error that names the argument."""
    with pytest.raises(ValueError, match=r"it must be") as caught:
        CALLS[name](value)
    assert str(caught.value).startswith(f"{name} is "), caught.value
    return str(caught.value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e5m2])
def test_a_dtype_that_would_lose_something_is_refused(name, dtype):
    message = refused(name, RIGHT.get(name, X).to(dtype))
    assert str(dtype) in message
    assert "torch.bfloat16" in message
    assert ("two planes" in message) == dtype.is_complex


@pytest.mark.parametrize("path", ["torch", "reference", "cpu"])
def test_whatever_the_path(path):
    with pytest.raises(ValueError, match=r"[ab] is torch\.complex64"):
        ops.linear_scan(X.to(torch.complex64), X.to(torch.complex64), path=path)
    with pytest.raises(ValueError, match=r"b is torch\.int32"):
        ops.linear_scan(X, X.int(), path=path)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [0, 0.5, [1.0], np.zeros((2, 5, 3), np.float32)], ids=lambda x: type(x).__name__)
def test_what_is_no_tensor_is_refused(name, value):
    assert f"of type {type(value).__name__}" in refused(name, value)


@pytest.mark.parametrize("name", ["a", "b", "c", "beta", "decay (imaginary)", "b (imaginary)"])
def test_none_is_refused_where_it_means_nothing(name):
    assert "NoneType" in refused(name, None)


@pytest.mark.parametrize("name", sorted({*CALLS} - {"b", "c"}))  # those say which device it is
def test_another_device_is_refused(name):
    assert "is on meta" in refused(name, RIGHT.get(name, X).to("meta"))


def test_one_of_the_first_on_another_device_is_refused():
    for call in (CALLS["b"], CALLS["c"]):
        with pytest.raises(ValueError, match="it must be on the device of the other inputs, meta"):
            call(X.to("meta"))


@pytest.mark.parametrize("name", CALLS)
def test_a_sparse_tensor_is_refused(name):
    assert "layout torch.sparse" in str(_sparse(name))


def _sparse(name):
    with pytest.raises(ValueError, match=rf"^{name}".replace("(", r"\(").replace(")", r"\)")) as caught:
        CALLS[name](RIGHT.get(name, X).to_sparse())
    return caught.value


@pytest.mark.parametrize("flag", ["mask", "reset"])
def test_flags_are_tensors_on_the_same_device(flag):
    with pytest.raises(ValueError, match=f"{flag} is of type ndarray"):
        ops.linear_scan(X, X, **{flag: np.ones((2, 5), bool)})
    with pytest.raises(ValueError, match=f"{flag} is on meta"):
        ops.linear_scan(X, X, **{flag: torch.ones(2, 5, dtype=torch.bool, device="meta")})


@pytest.mark.parametrize("planes", [X, (X,), None, 1.0], ids=["tensor", "one", "none", "number"])
def test_planes_come_in_pairs(planes):
    with pytest.raises(ValueError, match=r"^b is of type .*two tensors, \(real, imaginary\)"):
        ops.lru_scan((X[0, 0], X[0, 0]), planes)
    with pytest.raises(ValueError, match=r"^decay is of type"):
        ops.lru_scan(planes, (X, X))


def test_dtypes_may_still_differ():
    state = STATE.double()
    for a, b in ((X.bfloat16(), X), (X, X.half()), (X.double(), X.bfloat16())):
        states, final = ops.linear_scan(a, b, state)
        assert (states.dtype, states.isfinite().all().item()) == (b.dtype, True)
        assert final.shape == STATE.shape


def test_explain_takes_no_dtype_that_scans_refuse(caplog):
    for dtype in (torch.int32, torch.complex64, torch.bool, "x"):
        for path in (None, "torch"):
            with pytest.raises(ValueError, match=r"scans take torch\.float64.*or torch\.bfloat16"):
                ops.explain(dtype=dtype, path=path)
    assert caplog.text == ""


def test_names_are_listed_before_they_are_asked_for():
    import hybridlm

    assert {"linear_scan", "lru_scan", "memory_scan", "index_scan", "explain"} <= set(dir(ops))
    assert "allocator" in dir(hybridlm)
