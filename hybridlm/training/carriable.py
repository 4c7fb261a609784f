"""What a run that carries states from batch to batch (`data.carry_state`) cannot have."""

from typing import Any

from hybridlm.model.cell_hybridlm import RECURRENT_LAYER


def refuse_uncarried(model: Any, gradient_checkpointing: bool) -> None:
    """Raises ValueError that lists everything. model: a HybridLMConfig."""
    layers = enumerate(zip(model.block_types, model.layer_types, strict=True))
    found = [f"layer {index}: {block}" for index, (block, kind) in layers if kind != RECURRENT_LAYER]
    problems = []
    if found:
        problems.append(
            f"{', '.join(found)} of model.pattern={model.pattern!r} would have to keep the keys of all that was read; "
            "take a pattern of recurrent layers"
        )
    if gradient_checkpointing:
        problems.append(
            "training.gradient_checkpointing=true would run a layer again once its state has moved on; set it to "
            "false, and to save memory lower training.micro_batch_size"
        )
    if problems:
        raise ValueError(f"data.carry_state=true: {'; '.join(problems)}. Or set data.carry_state=false")
