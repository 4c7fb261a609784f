"""The short causal depthwise convolution in front of the cells, blind to padding and to other documents.

    v_t = b + sum_k w_k * u_{t-k}        k = 0 ... K-1

A step of padding is invisible: the K-1 inputs behind a token are the last K-1 *valid* ones, wherever the padding
stands. So a row that was padded on the right goes on as if it had not been, in one call or in chunks. A tap that would
reach into the document before is left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .fused_hybridlm import kernels_for


@dataclass
class Window:
    """The inputs a convolution has just seen, valid ones last: what the next call needs, and any rollback of this one.

    inputs (B, K-1+T, N); document (B, K-1+T) int64, which document of this call each belongs to, or None if there is
    only one; mask (B, T) bool, the call's own, or None.
    """

    inputs: Tensor
    document: Tensor | None
    taps: int
    mask: Tensor | None

    def tail(self, dropped: int = 0) -> Tensor:
        """The last K-1 inputs (B, K-1, N) once `dropped` steps are taken back; what belongs to an earlier document is
        zero."""
        end = self.inputs.shape[1] - dropped
        inputs, document = self.inputs[:, end - self.taps : end], self.document
        document = None if document is None else document[:, end - self.taps : end]
        if dropped and self.mask is not None:  # padding stands in front, so a row loses its valid steps alone
            end = self.inputs.shape[1] - self.mask[:, -dropped:].sum(1, keepdim=True)
            places = end - torch.arange(self.taps, 0, -1, device=end.device)
            inputs = self.inputs.gather(1, places.unsqueeze(2).expand_as(inputs))
            document = None if self.document is None else self.document.gather(1, places)
        return inputs if document is None else inputs.masked_fill((document != document[:, -1:]).unsqueeze(2), 0.0)


class ShortConv(nn.Module):
    """Depthwise over N channels with K taps; weight (N, K), its last column acts on the present."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(width, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(
        self,
        u: Tensor,
        past: Tensor | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        keep_window: bool = True,
    ) -> tuple[Tensor, Window | None]:
        """u (B, T, N); past: the tail of the call before (B, K-1, N), None at the start; mask, reset (B, T) bool.

        Returns v (B, T, N) and the window, None where nobody will ask for it.
        """
        kernels = kernels_for(u) if mask is None and not keep_window else None
        if kernels is not None:
            return kernels.conv(u, past if past is None else past.to(u.dtype), self.weight, self.bias, reset), None
        taps, length = self.kernel - 1, u.shape[1]
        inputs = F.pad(u, (0, 0, taps, 0)) if past is None else torch.cat([past.to(u.dtype), u], dim=1)
        document = None
        if reset is not None:
            starts = reset if mask is None else reset & mask
            document = F.pad(starts.long().cumsum(1), (taps, 0))
        place = None
        if mask is not None:
            # Padding first, valid inputs behind it in their order. Counted, not sorted: ONNX exports have no such sort.
            valid = F.pad(mask, (taps, 0), value=True)
            padding = (~valid).long().cumsum(1)
            place = torch.where(valid, valid.long().cumsum(1) + padding[:, -1:], padding) - 1
            inputs = torch.zeros_like(inputs).scatter(1, place.unsqueeze(2).expand_as(inputs), inputs)
            document = None if document is None else torch.zeros_like(document).scatter(1, place, document)
        v = self._convolve(inputs, document, length)
        if place is not None:
            back = (place[:, taps:] - taps).clamp_min(0)
            v = v.gather(1, back.unsqueeze(2).expand_as(v))
        return v, Window(inputs, document, taps, mask)

    def _convolve(self, inputs: Tensor, document: Tensor | None, length: int) -> Tensor:
        kernels = kernels_for(inputs)
        if kernels is not None:
            past, u = inputs.split([self.kernel - 1, length], dim=1)
            starts = None
            if self.kernel == 1:  # nothing behind a token
                past = None
            elif document is not None:
                starts = document[:, -length:] != document[:, -length - 1 : -1]
            return kernels.conv(u, past, self.weight, self.bias, starts)
        weight = self.weight.to(inputs.dtype)
        v = torch.addcmul(self.bias.to(inputs.dtype), inputs[:, -length:], weight[:, -1])
        for k in range(1, self.kernel):
            start = self.kernel - 1 - k
            shifted = inputs[:, start : start + length]
            if document is not None:
                same = document[:, start : start + length] == document[:, -length:]
                shifted = shifted * same.unsqueeze(2)
            v = torch.addcmul(v, shifted, weight[:, -1 - k])
        return v

    def reset_weights(self) -> None:
        init.normal_(self.weight, std=self.kernel**-0.5)
        init.zeros_(self.bias)
