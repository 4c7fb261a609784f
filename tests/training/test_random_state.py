"""Random numbers of devices that are not here: a module with the functions of torch.xpu stands for theirs."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from hybridlm.training.checkpoints import STATE
from hybridlm.training.random_state import RandomState, kept_random_state
from hybridlm.training.state import _store, load_random_state

XPU = torch.device("xpu", 1)


class Device:
    """As torch.xpu, with a generator on the CPU."""

    def __init__(self):
        self.generator, self.asked = torch.Generator().manual_seed(7), []

    def get_rng_state(self, device="xpu"):
        self.asked.append(device)
        return self.generator.get_state()

    def set_rng_state(self, new_state, device="xpu"):
        self.asked.append(device)
        self.generator.set_state(new_state)

    def draw(self):
        return torch.rand(3, generator=self.generator)


@pytest.fixture
def device(monkeypatch):
    found = Device()
    modules = {"xpu": found, "other": object()}
    monkeypatch.setattr(torch, "get_device_module", lambda device: modules.get(device.type, modules["other"]))
    return found


@pytest.mark.parametrize("module", [torch.cuda, torch.xpu, torch.mps], ids=lambda module: module.__name__)
def test_the_module_of_this_test_is_like_those_of_torch(module):
    for name in ("get_rng_state", "set_rng_state"):
        real, ours = (inspect.signature(getattr(owner, name)) for owner in (module, Device()))
        assert list(real.parameters) == list(ours.parameters)


def test_what_a_checkpoint_keeps_of_a_device(device, tmp_path):
    accelerator = SimpleNamespace(device=XPU, num_processes=1, process_index=0)
    (tmp_path / STATE).mkdir()
    _store([RandomState(XPU).state_dict()], tmp_path / STATE / "rng.pt")
    expected = device.draw(), torch.rand(3)
    device.generator.manual_seed(0)
    torch.manual_seed(0)
    assert load_random_state(tmp_path, accelerator)
    assert set(device.asked) == {XPU}
    for one, two in zip(expected, (device.draw(), torch.rand(3)), strict=True):
        assert torch.equal(one, two)
    # On the CPU, or a device without such functions, the state of the device is left out.
    for other in ("cpu", "meta"):
        accelerator.device = torch.device(other)
        assert load_random_state(tmp_path, accelerator)
        assert torch.equal(torch.rand(3), expected[1])
        assert RandomState(accelerator.device).state_dict()["device"] is None
    # Checkpoints of before had GPUs' alone, under another name.
    saved = RandomState(XPU).state_dict()
    old = {"cpu": saved["cpu"], "cuda": saved["device"]}
    expected = device.draw()
    RandomState.from_state_dict(old, XPU).restore()
    assert torch.equal(device.draw(), expected)


def test_seeds_set_inside_leave_no_trace(device):
    state = RandomState(XPU).state_dict()
    with kept_random_state(XPU):
        device.generator.manual_seed(3)
        torch.manual_seed(3)
    now = RandomState(XPU).state_dict()
    assert all(torch.equal(state[name], now[name]) for name in ("cpu", "device"))
