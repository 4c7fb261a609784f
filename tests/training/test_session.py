"""What a run does to its process, and that it undoes it."""

import math
import os
import pickle

import pytest
import torch
from accelerate.state import AcceleratorState

from hybridlm import allocator
from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.training.report import _device, _precision, _products_take
from hybridlm.training.session import accelerator_session, cpu_threads, on_main


def test_sessions_of_different_precision_follow_one_another(recipe):
    for precision in ("no", "bf16", "no"):
        with accelerator_session(recipe(f"training.mixed_precision={precision}")) as accelerator:
            assert accelerator.mixed_precision == precision
        assert not AcceleratorState._shared_state


def test_threads_and_determinism_are_put_back(recipe, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before + 1))
    seen = []

    def run_and_fail():
        with accelerator_session(recipe("training.deterministic=true")):
            seen.extend((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        run_and_fail()
    assert seen == [before + 1, True]
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_freed_memory_is_kept_inside_alone(recipe):
    seen = []
    for _ in range(2):
        with accelerator_session(recipe()):
            seen.append(allocator._open)
        seen.append(allocator._open)
    assert seen == [1, 0, 1, 0]


def test_threads_are_the_share_of_the_cores(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpu_threads() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun sets OMP_NUM_THREADS=1 unasked, so it says nothing
    assert cpu_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert cpu_threads() == 1


def test_an_error_of_the_main_process_is_everyones(recipe):
    def fail():
        raise UserError("no such folder")

    with accelerator_session(recipe()) as accelerator:
        assert on_main(accelerator, lambda: 7) == 7
        with pytest.raises(UserError, match="no such folder"):
            on_main(accelerator, fail)
        refused = OtherSettingsError("Was 1, is 2. ", "Change it.")
        with pytest.raises(OtherSettingsError, match=r"^Was 1, is 2\. Change it\.$") as caught:
            on_main(accelerator, lambda: (_ for _ in ()).throw(refused))
    sent = pickle.loads(pickle.dumps(caught.value))  # how it comes to the other processes
    assert (sent.found, sent.advice, str(sent)) == (refused.found, refused.advice, str(refused))


def test_processes_that_did_not_join_are_refused(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hybridlm.training.session.Accelerator", _Alone)
    with pytest.raises(UserError, match="started 2 processes, but Accelerate joined 1"), accelerator_session(recipe()):
        pass


class _Alone:
    num_processes = 1

    def __init__(self, **_):
        pass


@pytest.mark.parametrize(("times", "warns"), [(0.3, False), (1.2, False), (80.0, True)])
def test_the_report_says_where_bf16_is_slower(recipe, monkeypatch, times, warns):
    monkeypatch.setattr("hybridlm.training.report._products_take", lambda _: times)
    with accelerator_session(recipe("training.mixed_precision=bf16")) as accelerator:
        words = _precision(accelerator)
    assert words.startswith("bf16 products, fp32 weights and recurrences")
    assert ("80 times as long" in words) == warns
    with accelerator_session(recipe()) as accelerator:
        assert _precision(accelerator) == "fp32"


def test_products_are_timed():
    assert 0 < _products_take(torch.bfloat16, side=64) < math.inf


def test_a_cpu_has_no_number_in_the_report():
    """torch numbers it below a launcher."""
    assert _device(torch.device("cpu:0")) == _device(torch.device("cpu")) == "cpu"
    assert _device(torch.device("xpu:1")) == "xpu:1"
