"""What GPUs can do at best, and the share of it that a run reaches (model FLOPs utilisation, MFU).

Peaks are the dense rates of matrix products in NVIDIA's data sheets, with accumulation in fp32, where a sheet names the
rate with sparsity half of it. A device that is not in the table has no MFU: its peak is unknown here.

| data sheet | bf16 and fp16, TFLOP/s |
|---|---|
| A100 Tensor Core GPU (nvidia-a100-datasheet, 2021) | 312 |
| H100 Tensor Core GPU (2024) SXM, PCIe, NVL | 989, 756, 835 |
| H200 Tensor Core GPU (2024) SXM, NVL | 989, 835 |
| L40S (2023), L4 (2023) | 362, 121 |
| V100 (2020) SXM2, fp16 alone | 125 |
"""

from typing import Any

import torch

from hybridlm.training.flops import flops_per_token
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.setup import tokens_per_step

_BOTH = (torch.bfloat16, torch.float16)
_TERA = {
    **dict.fromkeys(
        (
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA A100-SXM4-80GB",
            "NVIDIA A100-PCIE-40GB",
            "NVIDIA A100 80GB PCIe",
        ),
        dict.fromkeys(_BOTH, 312.0),
    ),
    "NVIDIA H100 80GB HBM3": dict.fromkeys(_BOTH, 989.0),
    "NVIDIA H100 PCIe": dict.fromkeys(_BOTH, 756.0),
    "NVIDIA H100 NVL": dict.fromkeys(_BOTH, 835.0),
    "NVIDIA H200": dict.fromkeys(_BOTH, 989.0),
    "NVIDIA H200 NVL": dict.fromkeys(_BOTH, 835.0),
    "NVIDIA L40S": dict.fromkeys(_BOTH, 362.0),
    "NVIDIA L4": dict.fromkeys(_BOTH, 121.0),
    "Tesla V100-SXM2-16GB": {torch.float16: 125.0},
    "Tesla V100-SXM2-32GB": {torch.float16: 125.0},
}
"""Name that torch gives the device -> dtype of the products -> TFLOP/s. A slice of a GPU (MIG) has another name."""


def peak_flops(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of the device at best; None where that is not known."""
    tera = _TERA.get(name, {}).get(dtype)
    return None if tera is None else tera * 1e12


def device_peak(device: torch.device, mixed_precision: str) -> float | None:
    """The peak of this device in the precision of a run ("no", "bf16", "fp16"); None where it is not known."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    if device.type != "cuda" or dtype is None:
        return None
    return peak_flops(torch.cuda.get_device_name(device), dtype)


class Utilisation:
    """The share of the device's peak that a step's model FLOPs reach."""

    def __init__(self, model: Any, config: PretrainConfig, device: torch.device, processes: int):
        peak = device_peak(device, config.training.mixed_precision)
        self._best = None if peak is None else peak * processes
        self._flops = flops_per_token(model, config.data.sequence_length).training * tokens_per_step(config)

    def row(self, seconds: float) -> dict[str, float]:
        """`mfu` for the row of a step that took so long; nothing where the peak is not known."""
        return {} if self._best is None else {"mfu": self._flops / seconds / self._best}
