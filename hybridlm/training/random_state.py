"""torch's random numbers, on the CPU and on whatever device a process computes on: kept, put back, saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class RandomState:
    """The state on the CPU and on `device`, now. A device whose torch module keeps none (`get_rng_state`) has none
    here."""

    def __init__(self, device: torch.device):
        module = _module(device)
        self.device, self.cpu = device, torch.get_rng_state()
        self.of_device: Tensor | None = None if module is None else module.get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.of_device is not None:
            _module(self.device).set_rng_state(self.of_device, self.device)

    def state_dict(self) -> dict[str, Tensor | None]:
        """For a checkpoint."""
        return {"cpu": self.cpu, "device": self.of_device}

    @classmethod
    def from_state_dict(cls, saved: dict[str, Tensor | None], device: torch.device) -> RandomState:
        """To be put back on `device`, which may be of another kind than the one that was saved from: it then goes on
        with the numbers that it has."""
        state = cls(device)
        before = saved.get("device", saved.get("cuda"))  # as it was called when other devices were not saved
        if saved["cpu"] is not None:
            state.cpu = saved["cpu"]
        if before is not None and state.of_device is not None and before.shape == state.of_device.shape:
            state.of_device = before
        return state


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside, and seeds set, leave no trace."""
    state = RandomState(device)
    try:
        yield
    finally:
        state.restore()


def _module(device: torch.device) -> Any:
    """torch.cuda, torch.xpu, torch.mps, ...; None for the CPU, and for devices without random states of their own."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state") and hasattr(module, "set_rng_state") else None
