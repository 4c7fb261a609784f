"""Muon for the hidden matrices and AdamW for everything else, as one optimizer with one state.

One, so that Accelerate prepares it, the fp16 scaler skips or takes a step of both, and a checkpoint holds both. Muon's
updates are orthogonal matrices, scaled to the size of AdamW's (0.2 sqrt(max(rows, columns)); Liu et al., arXiv
2502.16982), so that one learning rate serves both.
"""

from typing import Any

import torch
from accelerate.utils import DistributedType

from hybridlm.errors import UserError

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class MuonAdamW(torch.optim.Optimizer):
    """`param_groups` are Muon's, then AdamW's; `state` is that of both."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self._parts, self._of_muon = (muon, adamw), len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both. closure: as in torch's optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()  # it made new dictionaries

    def _share(self) -> None:
        """Both parts work on the groups and the state of the whole."""
        muon, adamw = self._parts
        muon.param_groups, adamw.param_groups = self.param_groups[: self._of_muon], self.param_groups[self._of_muon :]
        muon.state = adamw.state = self.state


def refuse_sharded_muon(kind: str, distributed: DistributedType) -> None:
    """Raises UserError for Muon where each process holds a part of every matrix only."""
    if kind == "muon" and distributed in _SHARDED:
        raise UserError(
            f"optimizer.kind='muon' does not work under {distributed.value}: its update needs whole matrices, and each "
            "process holds a part of them. Use optimizer.kind=adamw, or launch plain data parallelism (torchrun, or "
            "accelerate launch --multi_gpu)."
        )
