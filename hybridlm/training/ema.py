"""The exponential moving average of the weights: torch's `AveragedModel`, in fp32, on every process; dealt out over
them where the weights are.

    average_1 = weights_1;  average_k = decay average_{k-1} + (1 - decay) weights_k      after step k

Steps that fp16 leaves out do not count. Buffers are the model's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """A second model that follows the first. Made before Accelerate and torch.compile change how the first is called,
    which a copy would share, and before `fully_shard`, which takes it apart as it does the first."""

    def __init__(self, model: nn.Module, decay: float, device: torch.device):
        self._averaged = AveragedModel(model, device, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._averaged.requires_grad_(False).eval()
        self.model: Any = self._averaged.module
        self.model.record_writes(False)

    def update(self, model: nn.Module) -> None:
        """Takes in the weights of `model` after a step."""
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights, and how many steps are in them."""
        return self._averaged.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """The same, each tensor under one name: what is written into them is taken over."""
        once: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in self._averaged.state_dict(keep_vars=True).items():
            once.setdefault(id(tensor), (name, tensor.detach()))
        return dict(once.values())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)
