"""One model over all targets, length by length, until one cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridlm.evaluation.lengths.labels import shown
from hybridlm.evaluation.lengths.targets import Targets
from hybridlm.evaluation.lengths.tokens import Tokens
from hybridlm.evaluation.lengths.windows import CALL, Window, cache_name, halves, impossible, read_windows

Report = Callable[[int], None]
"""Told after every window how many tokens it had."""


@dataclass
class Pass:
    """One length over all targets.

    nats (pieces,) float64. context_bytes: what a target has in front of it in its window, on average. apart: of the
    windows that do not overlap, nats and bytes of each token, (T,) both, from the window's first token on.
    """

    nats: Tensor
    context_bytes: float
    apart: list[tuple[Tensor, Tensor]]


@dataclass
class Passes:
    """by_length: what was read. reasons: why a length was not, in words. in_pieces: whether windows went through the
    cache call by call; None where all fit into one call."""

    by_length: dict[int, Pass] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    in_pieces: bool | None = None


@torch.inference_mode()
def read_all(
    model: PreTrainedModel,
    documents: Sequence[Tokens],
    targets: Sequence[Targets],
    lengths: Sequence[int],
    *,
    rows: int | None = None,
    call: int = CALL,
    report: Report | None = None,
) -> Passes:
    """All lengths, ascending, of a model in evaluation mode; after one that cannot be read none is tried.

    documents: as this model's tokenizer has them. rows: windows side by side, call: tokens of a window in one call;
    both change no number beyond rounding.
    """
    found, cache = Passes(), None
    if lengths[-1] > call:
        cache = cache_name(model, documents[targets[0].document].ids)
        found.in_pieces = cache is not None
    for length in lengths:
        reason = impossible(model, length, cache, call)
        if reason is None:
            try:
                one = _read(model, documents, targets, length, cache, rows, call, report)
            except torch.OutOfMemoryError:
                reason = f"out of memory on {model.device}"
            except (RuntimeError, IndexError, ValueError) as error:  # how models refuse positions that they do not have
                reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            else:
                if torch.isfinite(one.nats).all():
                    found.by_length[length] = one
                    continue
                reason = f"the predictions are not finite in {str(model.dtype).removeprefix('torch.')}"
        found.reasons[length] = reason
        break
    for longer in lengths[len(found.by_length) + 1 :]:
        found.reasons[longer] = f"not tried, as {shown(lengths[len(found.by_length)])} is not possible"
    return found


def tokens_to_read(documents: Sequence[Tokens], targets: Sequence[Targets], lengths: Sequence[int]) -> int:
    """Tokens of all windows of all lengths."""
    total = 0
    for each in targets:
        first, last = each.span(documents[each.document])
        for length in lengths:
            ahead, step = halves(length)
            total += last - first + ahead * len(range(first, last, step))
    return total


def _read(
    model: PreTrainedModel,
    documents: Sequence[Tokens],
    targets: Sequence[Targets],
    length: int,
    cache: str | None,
    rows: int | None,
    call: int,
    report: Report | None,
) -> Pass:
    sums, apart, ahead, count = [], [], 0.0, 0
    for each in targets:
        tokens = documents[each.document]
        scored = []
        windows = read_windows(model, tokens, each.span(tokens), length, cache=cache, rows=rows, call=call)
        for at, window in enumerate(windows):
            scored.append(window.nats[window.scored - window.first :])
            ahead += _bytes_ahead(tokens, window)
            if at % 2 == 0:
                apart.append((window.nats, tokens.n_bytes(window.first, window.last)))
            if report is not None:
                report(window.last - window.first)
        nats = torch.cat(scored)
        count += len(nats)
        sums.append(each.sums(tokens, nats))
    return Pass(torch.cat(sums), ahead / count, apart)


def _bytes_ahead(tokens: Tokens, window: Window) -> float:
    """Bytes between the window's beginning and each of its targets, summed over them."""
    sizes = tokens.n_bytes(window.first, window.last).double()
    return float((sizes.cumsum(0) - sizes)[window.scored - window.first :].sum())
