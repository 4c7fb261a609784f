"""Models that have learned a vector for each position, and none beyond: they cannot read further, and torch says no
more than that an index is out of range."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from hybridlm.errors import UserError


def position_limit(model: PreTrainedModel) -> int | None:
    """Positions of a model that has learned a vector for each, as GPT-2 and OPT have; None for all others."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    words = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        # OPT's table has two rows more than positions.
        if isinstance(module, nn.Embedding) and module not in words and 0 <= module.num_embeddings - positions <= 2:
            return positions
    return None


def check_positions(model: PreTrainedModel, tokens: int, what: str, advice: str) -> None:
    """Raises UserError where the model has no position for the last of `tokens`; what: whose tokens they are; advice:
    what to do, with {limit} for the model's positions."""
    limit = position_limit(model)
    if limit is not None and tokens > limit:
        raise UserError(
            f"{what}, and the model has an embedding for each of {limit:,} positions and none beyond. "
            + advice.format(limit=limit)
        )
