"""Validation at epsilon = 0, without exploration: nats of the text's own tokens, and bits per byte.

Start and end symbols are no bytes of the text and are left out of the sum. The batches are dealt out over the
processes, or over groups of them that share sequences; sums are exact over any number.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from hybridlm.data.loader import Windows, validation_batches
from hybridlm.training.parallel import Layout
from hybridlm.training.sharding import give_back
from hybridlm.training.training_states import put, switched_off, training_states


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and training states at 0 inside; mode and states as they were afterwards."""
    training, states = model.training, training_states(model)
    model.eval()
    put(model, switched_off(model))
    try:
        yield
    finally:
        give_back(model)
        model.train(training)
        put(model, states)


def validate(
    accelerator: Accelerator,
    model: Any,
    windows: Windows,
    batch_size: int,
    max_windows: int | None,
    layout: Layout,
    give_up: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Bits per byte over the first `max_windows` windows (None: all).

    windows: made with shuffle=False, text_only=True. layout: where this process stands. give_up: asked before each
    batch, with the same answer in all processes.
    Returns bits_per_byte, loss (nats per text token), n_bytes, n_tokens, windows; None where it was given up.
    """
    plain = accelerator.unwrap_model(model)
    count = windows.per_epoch if max_windows is None else min(max_windows, windows.per_epoch)
    # fp64 sums, so that the number of processes changes the result by rounding only; MPS has no fp64.
    sums = torch.zeros(
        2, device=accelerator.device, dtype=torch.float32 if accelerator.device.type == "mps" else torch.float64
    )
    with evaluating(plain), torch.no_grad(), accelerator.autocast():
        mine: dict[str, Any] = {"rank": layout.data_rank, "world_size": layout.data_world}
        mine |= {"part": layout.part, "parts": layout.parts}
        for batch in validation_batches(windows, batch_size=batch_size, limit=count, **mine):
            if give_up():
                return None
            inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            # Without a target too, since the others may need this process's part of the forward; its loss is 0 then.
            sums[0] += plain(**inputs, use_cache=False, keep_logits=False, num_items_in_batch=1).loss
            sums[1] += (inputs["shift_labels"] != -100).sum()
    nats, tokens = accelerator.reduce(sums, reduction="sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]
    n_bytes = windows.n_bytes(count)
    return {
        "bits_per_byte": nats / (math.log(2) * n_bytes),
        "loss": nats / tokens,
        "n_bytes": n_bytes,
        "n_tokens": int(tokens),
        "windows": count,
    }
