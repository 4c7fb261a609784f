"""How often rounding flips a discrete state: one forward over a text beside single steps with a cache.

The scans of `bmru` and `nfsm` themselves give the same bits in any order. The matrix products in front of them do not:
a unit whose |c| lies within their rounding of beta may write in one view and hold in the other, and then differs until
its next write; a head whose two best destinations lie as close may go to either, and then differs until some input
sends both of its states to the same one. In 16 bits close means equal but for the last of 8 or 11 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hybridlm.errors import UserError
from hybridlm.model.cells_bmru import BmruCell
from hybridlm.model.cells_nfsm import NfsmCell


@torch.no_grad()
def count_flips(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """ids (B, T) int64. Returns the share of (token, unit or head) pairs of all `bmru` and `nfsm` layers whose states
    differ, `states` and `dtype`, and `logits`, the largest difference of a logit as a share of the largest logit.

    Raises UserError for a model without such layers.
    """
    cells = [module for module in model.modules() if isinstance(module, (BmruCell, NfsmCell))]
    if not cells:
        pattern = getattr(model.config, "pattern", None)
        raise UserError(f"pattern={pattern!r}: the model has no bmru or nfsm layer, so there is nothing to flip.")
    seen: list[list[Tensor]] = [[] for _ in cells]

    def keep(index: int) -> Callable[..., None]:
        def hook(_cell: Any, _inputs: Any, output: Any) -> None:
            seen[index].append(output[1]["s"])

        return hook

    hooks = [cell.register_forward_hook(keep(index)) for index, cell in enumerate(cells)]
    try:
        model.eval()
        whole = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        steps = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(ids.shape[1])], dim=1)
    finally:
        for hook in hooks:
            hook.remove()
    differing = [kept[0] != torch.cat(kept[1:], dim=1) for kept in seen]
    return {
        "flipped": sum(int(each.sum()) for each in differing) / sum(each.numel() for each in differing),
        "states": sum(each.numel() for each in differing),
        "logits": ((whole - steps).abs().max() / whole.abs().max()).item(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
