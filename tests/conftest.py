"""What every test can rely on: no network, one thread, the same random numbers, transformers quiet."""

import os
import signal
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that a test starts inherit it

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """A test that runs below a launcher is still one process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def _no_accelerator_left():
    """accelerate keeps the precision and the processes of the first Trainer for the whole process: not for the next
    module too, whichever that is."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
