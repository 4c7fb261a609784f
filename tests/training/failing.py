"""Ways in which a run fails, for tests."""

import pytest
import torch

from hybridlm.training.journal import Journal
from hybridlm.training.loop import pretrain


class InfiniteGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, float("inf"))


def crash_after(step: int, config, monkeypatch) -> None:
    """Trains until that step is in the record, and no checkpoint holds it."""
    write = Journal.step

    def step_and_crash(self, row, *args):
        write(self, row, *args)
        if row["step"] == step:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", step_and_crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config)
    torch.manual_seed(99)  # another process would start from other random numbers
