"""The shell around a mixer: one residual block serves every cell, so that a cell file holds only its recurrence.

    u = norm(x);  v = conv(W_u u)
    y = W_o((sum of the cells' outputs on v + d * v) * silu(W_g u))      d * v where `input_skip` is set
    x = x + y;    x = x + mlp(norm(x))                       SwiGLU

Attention and `mamba2` bring their own projections and replace the two inner lines.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache_hybridlm import HybridRecurrentLayer
from .cell_hybridlm import Otherwise, starting
from .conv_hybridlm import ShortConv
from .decode_hybridlm import DecodeStep, decode_step
from .fused_hybridlm import RMSNorm, silu_gate
from .mixers_hybridlm import ATTENTION, CELLS, STANDALONE
from .recurrence_hybridlm import advance, convolve, states_of
from .sequence_hybridlm import SequenceRanks


class RecurrentMixer(nn.Module):
    """Cells side by side on the same v, (B, T, D) -> (B, T, D)."""

    def __init__(self, config, block: str, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        D, N = config.hidden_size, config.recurrence_size
        self.in_proj = nn.Linear(D, N, bias=False)
        self.gate_proj = nn.Linear(D, N, bias=False) if config.output_gate else None
        self.out_proj = starting(nn.Linear(N, D, bias=False), scale=config.residual_scale)
        self.conv = ShortConv(N, config.conv_kernel) if config.conv_kernel > 0 else None
        self.cells = nn.ModuleList([CELLS[name](config) for name in block.split("+")])
        self.skip = nn.Parameter(torch.empty(N)) if config.input_skip else None

    def reset_weights(self) -> None:
        """d starts at 1."""
        if self.skip is not None:
            init.ones_(self.skip)

    def forward(
        self, u: Tensor, mask: Tensor | None, reset: Tensor | None, cache: HybridRecurrentLayer | None
    ) -> Tensor:
        """mask, reset: (B, T) bool or None. The cache, if given, is read and moved on by T tokens."""
        v, window = convolve(self.conv, self.in_proj(u), mask, reset, cache)
        h = advance(self.cells, v, window, mask, reset, cache)  # pyright: ignore[reportArgumentType]
        if self.skip is not None:
            h = torch.addcmul(h, self.skip.to(h.dtype), v)
        if self.gate_proj is not None:
            h = silu_gate(self.gate_proj(u), h)
        return self.out_proj(h)

    def record(self, step: DecodeStep, u: int, cache: HybridRecurrentLayer) -> int:
        """`forward` as a decode step."""
        width = self.in_proj.out_features
        v = step.linear(u, self.in_proj)
        if self.conv is not None:
            if cache.conv is None:
                raise Otherwise
            step.plain(self.conv, ShortConv)
            v = step.ops.conv(v, step.own(self.conv.weight), step.own(self.conv.bias), cache.conv)
        h = None
        states = states_of(self.cells, cache.states)  # pyright: ignore[reportArgumentType]
        for cell, state in zip(self.cells, states, strict=True):
            emitted = step.cell(cell, v, state)  # pyright: ignore[reportArgumentType]
            h = emitted if h is None else step.ops.add(h, emitted, width)
        assert h is not None
        if self.skip is not None:
            h = step.ops.add_scaled(h, v, step.own(self.skip))
        if self.gate_proj is not None:
            h = step.ops.gate(step.linear(u, self.gate_proj), h, width)
        return step.linear(h, self.out_proj)


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x)."""

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.mlp_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = starting(nn.Linear(inner, width, bias=False), scale=config.residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_gate(self.gate_proj(x), self.up_proj(x)))

    def record(self, step: DecodeStep, x: int) -> int:
        """`forward` as a decode step."""
        hidden = step.ops.gate(step.linear(x, self.gate_proj), step.linear(x, self.up_proj), self.up_proj.out_features)
        return step.linear(hidden, self.down_proj)


@torch.compiler.disable
def _of_part(mixer: nn.Module, ranks: SequenceRanks, u: Tensor, mask: Tensor | None, reset: Tensor | None) -> Tensor:
    """What a mixer gives where sequences are split; never traced, since what passes between processes is not."""
    with ranks.sharing():
        return mixer(u, mask, reset, None)


class HybridLMDecoderLayer(GradientCheckpointingLayer):
    """One layer of the pattern. `hidden_states` comes positionally, as transformers' hooks and checkpointing want
    it."""

    def __init__(self, config, block: str, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.ranks: SequenceRanks | None = None
        self.attention_type = ATTENTION[block].layer_type if block in ATTENTION else None
        self.mixer_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = (
            STANDALONE[block](config, layer_idx) if block in STANDALONE else RecurrentMixer(config, block, layer_idx)
        )
        self.mlp_norm = self.mlp = None
        if config.mlp_size > 0:
            self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = SwiGLU(config)

    def forward(
        self,
        hidden_states: Tensor,
        causal_masks: dict | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Tensor:
        """hidden_states (B, T, D). causal_masks: for each kind of attention layer, what transformers made; mask, reset:
        (B, T) bool or None, for recurrent layers."""
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        if isinstance(self.mixer, RecurrentMixer):
            stepped = decode_step(self, hidden_states, mask, reset, cache)
            if stepped is not None:
                return stepped
        u = self.mixer_norm(hidden_states)
        if self.attention_type is not None:
            y, _ = self.mixer(
                u,
                attention_mask=None if causal_masks is None else causal_masks.get(self.attention_type),
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        elif self.ranks is None:
            y = self.mixer(u, mask, reset, cache)
        else:  # here and not around the model: checkpointing runs a layer again during the backward
            y = _of_part(self.mixer, self.ranks, u, mask, reset)  # pyright: ignore[reportCallIssue]
        hidden_states = hidden_states + y
        if self.mlp is not None and self.mlp_norm is not None:
            hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return hidden_states

    def record(self, step: DecodeStep, x: int, y: Tensor, cache: HybridRecurrentLayer) -> None:
        """`forward` of a layer with a RecurrentMixer as a decode step, from x to y (B, 1, D)."""
        ops, mixer, width = step.ops, self.mixer, y.shape[-1]
        step.plain(mixer, RecurrentMixer)
        mixed = mixer.record(step, step.norm(x, self.mixer_norm), cache)  # pyright: ignore[reportCallIssue]
        if self.mlp is None or self.mlp_norm is None:
            ops.add(x, mixed, width, to=y)
            return
        step.plain(self.mlp, SwiGLU)
        x = ops.add(x, mixed, width)
        ops.add(x, self.mlp.record(step, step.norm(x, self.mlp_norm)), width, to=y)
