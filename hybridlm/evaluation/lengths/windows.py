"""Nats of every token in windows of a text, read in calls of bounded size, the state carried from call to call.

Not every model's cache can do that: some drop their state when several tokens come at once behind it, without a word.
So each model is tried first. One that fails reads its windows in a single call, where that is possible.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hybridlm.evaluation.lengths.tokens import Tokens
from hybridlm.evaluation.positions import position_limit

CALL = 1024
"""Tokens of a window in one call."""
BATCH = 8192
"""Tokens of all windows that are read side by side, where the number of windows is not given."""
LARGEST = 2**31
"""Logits of one call that goes over a whole window: 8 GiB in fp32."""
_TRIAL = 128
_NAMES = ("past_key_values", "cache_params")
_FAULTS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Window:
    """Text tokens [first, last) read behind a start symbol. nats (last - first,) float64; those from `scored` on are
    targets."""

    first: int
    scored: int
    last: int
    nats: Tensor


def halves(length: int) -> tuple[int, int]:
    """Tokens of a window that are read only, and those that are targets."""
    return length - length // 2, length // 2


def read_windows(
    model: PreTrainedModel,
    tokens: Tokens,
    span: tuple[int, int],
    length: int,
    *,
    cache: str | None,
    rows: int | None = None,
    call: int = CALL,
) -> Iterator[Window]:
    """Windows of at most `length` tokens whose second halves, one behind the other, are the targets [first, last).

    Each begins with an empty state. first must have `halves(length)[0]` tokens before it. cache: from `cache_name`;
    None: windows are read in one call. rows: windows side by side; None: as many as hold BATCH tokens.
    """
    ahead, step = halves(length)
    starts = range(*span, step)
    full = [start for start in starts if start + step <= span[1]]
    rows = rows or max(1, BATCH // length)
    groups = [full[at : at + rows] for at in range(0, len(full), rows)]
    groups += [[start] for start in starts[len(full) :]]  # the last one is shorter: alone, so that nothing is padded
    for group in groups:
        last = [min(start + step, span[1]) for start in group]
        read = [tokens.ids[start - ahead + 1 : end + 1] for start, end in zip(group, last, strict=True)]
        batch = torch.stack([torch.cat([tokens.ids[:1], ids]) for ids in read])
        for start, end, nats in zip(group, last, _nats(model, batch, cache, call), strict=True):
            yield Window(start - ahead, start, end, nats)


def cache_name(model: PreTrainedModel, ids: Tensor) -> str | None:
    """The argument through which the cache goes from call to call; None where this model's does not work that way.

    Tried on the first of `ids`: a second half read behind the first one's cache must be predicted as in one call,
    ten times nearer to that than without the first half, which rounding in any dtype allows.
    """
    given = inspect.signature(model.forward).parameters
    name = next((name for name in _NAMES if name in given), None)
    limit = position_limit(model)
    row = ids[: _TRIAL if limit is None else min(limit, _TRIAL)].unsqueeze(0).to(model.device)
    half = row.shape[1] // 2
    if name is None or half == 0:
        return None
    with torch.inference_mode():
        whole = model(input_ids=row, use_cache=False).logits[:, half:].float()
        alone = model(input_ids=row[:, half:], use_cache=False).logits.float()
        try:
            held = getattr(model(input_ids=row[:, :half], use_cache=True), name)
            carried = model(input_ids=row[:, half:], use_cache=True, **{name: held}).logits.float()
        except _FAULTS:
            return None
    off, most = (carried - whole).abs().mean(), (alone - whole).abs().mean()
    return name if held is not None and off <= max(0.1 * most, 1e-5 * whole.abs().mean()) else None


def impossible(model: PreTrainedModel, length: int, cache: str | None, call: int = CALL) -> str | None:
    """Why a window of `length` tokens cannot be read, as far as that is known before; None: no reason."""
    limit = position_limit(model)
    if limit is not None and length > limit:
        return f"the model has an embedding for each of {limit:,} positions and none beyond"
    vocabulary = int(model.config.get_text_config().vocab_size)
    if cache is None and length > call and length * vocabulary > LARGEST:
        return (
            "the cache of this model cannot be carried over several tokens at once, and in one call the predictions "
            f"would take {length * vocabulary * 4 / 2**30:,.0f} GiB"
        )
    return None


def _nats(model: PreTrainedModel, batch: Tensor, cache: str | None, call: int) -> Tensor:
    """batch (B, T + 1) -> nats of batch[:, 1:], (B, T) float64 on the CPU."""
    batch = batch.to(model.device)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    if cache is None or inputs.shape[1] <= call:
        return _losses(model(input_ids=inputs, use_cache=False).logits, targets)
    nats, past = [], {}
    for ids, wanted in zip(inputs.split(call, dim=1), targets.split(call, dim=1), strict=True):
        output = model(input_ids=ids, use_cache=True, **past)
        past = {cache: getattr(output, cache)}
        nats.append(_losses(output.logits, wanted))
    return torch.cat(nats, dim=1)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Row by row: the fp32 copy of the logits is as large as one row only."""
    rows = zip(logits, targets, strict=True)
    return torch.stack([F.cross_entropy(row.float(), wanted, reduction="none").double().cpu() for row, wanted in rows])
