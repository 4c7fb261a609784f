"""`attention` and `sliding_attention`: causal softmax attention with RoPE and grouped queries, through transformers'
attention interface.

`attention` is the one mixer whose memory grows with the text; `sliding_attention` sees the last `sliding_window`
tokens and forgets the others. Both bring their own projections, so they replace the shell's inner line.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from .cell_hybridlm import FULL_ATTENTION, SLIDING_ATTENTION, starting


class HybridLMRotaryEmbedding(PhiRotaryEmbedding):
    """RoPE with transformers' scaling variants and `partial_rotary_factor`; its frequencies stay fp32 when the model is
    cast, as they are after loading."""

    def _apply(self, fn, recurse=True):
        exact = {name: buffer for name, buffer in self.named_buffers() if not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self.register_buffer(name, buffer.to(getattr(self, name).device), persistent=False)
        return self


class Attention(nn.Module):
    """hidden states (B, T, D) -> (B, T, D)."""

    layer_type = FULL_ATTENTION
    passes_state = False
    is_causal = True
    sliding_window: int | None = None

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        D, self.head_dim = config.hidden_size, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(D, D, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = starting(nn.Linear(D, D, bias=False), scale=config.residual_scale)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """attention_mask as transformers made it for this kind of layer; position_embeddings: RoPE's (cos, sin),
        (B, T, channels of a head that turn) each."""
        assert position_embeddings is not None
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            proj(hidden_states).view(heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE on the first channels of each head, as many as cos and sin have (`partial_rotary_factor`)."""
    width = cos.shape[-1]
    if width == query.shape[-1]:
        return apply_rotary_pos_emb(query, key, cos, sin)
    turned = apply_rotary_pos_emb(query[..., :width], key[..., :width], cos, sin)
    query, key = (torch.cat([part, whole[..., width:]], -1) for part, whole in zip(turned, (query, key), strict=True))
    return query, key


class SlidingAttention(Attention):
    """A token sees itself and the `sliding_window` - 1 tokens before it; the cache keeps no others."""

    layer_type = SLIDING_ATTENTION

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.sliding_window = config.sliding_window
