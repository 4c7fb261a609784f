"""`rglru`, the real-gated linear recurrent unit of Griffin (De et al., arXiv 2402.19427).

r = sigmoid(W_a x + b_a)      i = sigmoid(W_x x + b_x)      block-diagonal over heads
log a = -8 r softplus(p)
s_t = a * s_{t-1} + sqrt(1 - a^2) * (i * x)                 h_t = s_t
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .cell_hybridlm import Cell, State, lecun_normal_, wide
from .scan_hybridlm import linear_scan
from .stepwise_hybridlm import exporting

DECAY_SHARPNESS = 8.0


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(x), whose slope is cut at 500: it is infinite where the unit keeps everything (a = 1)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad * (0.5 / root.clamp_min(1e-3))


def _bounded_sqrt(x: Tensor) -> Tensor:
    return x.sqrt() if exporting() else _BoundedSqrt.apply(x)  # pyright: ignore[reportReturnType]


class RglruCell(Cell):
    """State: `s`."""

    def __init__(self, config):
        super().__init__(config)
        self.heads = config.num_attention_heads
        self.decay_min, self.decay_max = config.decay_min, config.decay_max
        block = self.width // self.heads
        # Both gates in one product: W_a in the first half of the outputs, W_x in the second.
        self.gate_weight = nn.Parameter(torch.empty(self.heads, block, 2 * block))
        self.gate_bias = nn.Parameter(torch.empty(self.heads, 2 * block))
        self.p = nn.Parameter(torch.empty(self.width))
        self.gate_bias._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r and i, (B, T, N) each, fp32."""
        rows = x.reshape(-1, self.heads, self.width // self.heads).transpose(0, 1)
        both = wide(rows @ self.gate_weight.to(x.dtype)) + wide(self.gate_bias).unsqueeze(1)
        r, i = torch.sigmoid(both).transpose(0, 1).chunk(2, dim=-1)
        return r.reshape(x.shape), i.reshape(x.shape)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        r, i = self.gates(x)
        log_a = -DECAY_SHARPNESS * r * F.softplus(wide(self.p))
        drive = _bounded_sqrt(-torch.expm1(2 * log_a)) * (i * wide(x))
        s, _ = linear_scan(torch.exp(log_a), drive, state["s"], reset=reset, mask=mask)
        return s.to(x.dtype), {"s": s}

    def reset_weights(self) -> None:
        """exp(-softplus(p)) is spread over [decay_min, decay_max], its square uniformly (as published code does)."""
        lecun_normal_(self.gate_weight, fan_in=self.width // self.heads)
        init.zeros_(self.gate_bias)
        square = torch.rand(self.width) * (self.decay_max**2 - self.decay_min**2) + self.decay_min**2
        init.copy_(self.p, torch.log(torch.expm1(-0.5 * torch.log(square))))
