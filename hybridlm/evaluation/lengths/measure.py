"""Checkpoints measured with contexts of several lengths, on the same bytes of a text.

By context: for a length ℓ the text is read in windows of ℓ tokens, each with an empty state behind a start symbol, of
which the second half is predicted; the next window begins half a window later. So each byte is predicted once, with
between ℓ/2 and ℓ tokens in front of it, and by every length: what differs between two lengths is the context alone.

By position: the windows of the longest length, side by side without overlap, as they are read from their first token to
their last with the state carried. Other positions hold other text, so this shows where a model breaks, and is no
measure of what context is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import _decode, facts_of, read_file
from hybridlm.evaluation.lengths.estimates import Estimate, bits_per_byte, course, in_words
from hybridlm.evaluation.lengths.labels import check_lengths
from hybridlm.evaluation.lengths.passes import Pass, Passes, Report, read_all, tokens_to_read
from hybridlm.evaluation.lengths.targets import FEWEST, PIECES, plan
from hybridlm.evaluation.lengths.tokens import Tokens, tokens_of
from hybridlm.evaluation.loading import load_checkpoint, locate
from hybridlm.evaluation.reading import Progress
from hybridlm.evaluation.report import trained_length
from hybridlm.evaluation.weights import weights_digest
from hybridlm.files import expanded, sha256


def evaluate_lengths(
    checkpoints: Sequence[str | Path],
    text_files: Sequence[str | Path],
    lengths: Sequence[int],
    *,
    batch_size: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What contexts of `lengths` tokens, ascending, are worth to checkpoints, as facts that can be written as JSON.

    text_files: one document each. batch_size: windows in one forward; None: as many as hold 8,192 tokens; changes no
    number beyond rounding. Lengths are tokens of each checkpoint's own tokenizer; the bytes that are predicted are the
    same for all. A length that a model cannot read has a reason for numbers, as have those above it. Raises UserError
    for checkpoints, files or numbers that cannot be used, and where no model can read the shortest length.
    """
    check_lengths(lengths)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1 window.")
    sources, names = [locate(each) for each in checkpoints], [str(name) for name in text_files]
    _check_once("checkpoint", sources)
    _check_once("text file", names)
    texts = [read_file(name) for name in text_files]
    tokenizers = [load_tokenizer(source) for source in sources]
    documents = [[tokens_of(tokenizer, text) for text in texts] for tokenizer in tokenizers]
    targets = plan(list(map(list, zip(*documents, strict=True))), lengths[-1], names)
    n_bytes = torch.cat([each.n_bytes for each in targets])
    report = _reporting(progress, sum(tokens_to_read(own, targets, lengths) for own in documents))
    found, passes = [], []
    for source, tokenizer, own in zip(sources, tokenizers, documents, strict=True):
        model, _ = load_checkpoint(source, dtype=dtype, device=device)
        passes.append(read_all(model, own, targets, lengths, rows=batch_size, report=report))
        facts = {"checkpoint": source, "weights": weights_digest(source), "trained_length": trained_length(source)}
        facts["n_tokens"] = sum(map(len, own))
        facts["tokenizer_is_lossless"] = all(
            _decode(tokenizer, tokens.ids[1:]) == text for tokens, text in zip(own, texts, strict=True)
        )
        found.append(facts | _numbers(passes[-1], lengths, n_bytes) | facts_of(model, tokenizer))
        del model
    if not any(own.by_length for own in passes):
        raise UserError(
            f"lengths: {sources[0]} cannot be measured at {lengths[0]:,} tokens: {passes[0].reasons[lengths[0]]}. Give "
            "shorter lengths, or another checkpoint."
        )
    used = {each.document for each in targets}
    return {
        "texts": names,
        "texts_sha256": [sha256(expanded(name)) for name in text_files],
        "texts_too_short": [name for at, name in enumerate(names) if at not in used],
        "n_bytes": sum(len(text.encode("utf-8")) for text in texts),
        "target_bytes": int(n_bytes.sum()),
        "pieces": len(n_bytes),
        "lengths": list(lengths),
        "same_tokens": all(_same(documents[0], own) for own in documents),
        "checkpoints": found,
        "better_than_the_first": _beside(sources, passes, n_bytes),
    }


def _same(documents: Sequence[Tokens], others: Sequence[Tokens]) -> bool:
    return all(torch.equal(one.ids, other.ids) for one, other in zip(documents, others, strict=True))


def _check_once(field: str, given: Sequence[str]) -> None:
    for each in given:
        if given.count(each) > 1:
            raise UserError(f"{field} {each}: it is there {given.count(each)} times; give it once.")


def _reporting(progress: Progress | None, total: int) -> Report | None:
    if progress is None:
        return None
    done = 0

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, done / total)

    return report


def _numbers(passes: Passes, lengths: Sequence[int], n_bytes: Tensor) -> dict[str, Any]:
    """What was measured of one checkpoint."""
    read = passes.by_length
    by_context = []
    for length in lengths:
        row: dict[str, Any] = {"length": length, "not_possible": passes.reasons.get(length)}
        if length in read:
            row |= _figures(bits_per_byte(read[length].nats, n_bytes)) | {"context_bytes": read[length].context_bytes}
        by_context.append(row)
    line = course(list(read), [each.nats for each in read.values()], n_bytes)
    gains = [{"shorter": a, "longer": b} | _figures(gain) for (a, b), gain in line.gains.items()]
    return {
        "read_in_pieces": passes.in_pieces,
        "by_context": by_context,
        "better_than_shorter": gains,
        "sure_beyond_standard_errors": line.needed,
        "by_position": _positions(list(read), read[max(read)]) if read else [],
        "still_improves": line.still_improves,
        "stops_improving_at": line.stops_at if line.still_improves is False else None,
        "worse_from": line.worse_from,
        "in_words": in_words(line),
    }


def _positions(lengths: Sequence[int], longest: Pass) -> list[dict[str, Any]]:
    """Bits per byte between one length and the next, in the windows of the longest. A standard error is over windows,
    or pieces of them where they are few; None below FEWEST pieces."""
    parts = math.ceil(PIECES / len(longest.apart))
    rows = []
    for start, end in pairwise([0, *lengths]):
        sums = [
            [values[start:end].tensor_split(min(parts, len(values[start:end]))) for values in window]
            for window in longest.apart
            if len(window[0]) > start
        ]
        nats, sizes = (torch.stack([part.sum() for window in sums for part in window[at]]) for at in (0, 1))
        figures = _figures(bits_per_byte(nats, sizes)) if len(nats) >= FEWEST else _figures(None)
        rows.append({"from": start + 1, "to": end, "windows": len(sums), "n_bytes": int(sizes.sum())} | figures)
    return rows


def _beside(sources: Sequence[str], passes: Sequence[Passes], n_bytes: Tensor) -> list[dict[str, Any]]:
    """How much better the other checkpoints are than the first, at the lengths that both can read."""
    first = passes[0].by_length
    return [
        {"checkpoint": source, "length": length}
        | _figures(bits_per_byte(first[length].nats - own.by_length[length].nats, n_bytes))
        for source, own in zip(sources[1:], passes[1:], strict=True)
        for length in own.by_length
        if length in first
    ]


def _figures(estimate: Estimate | None) -> dict[str, float | None]:
    """None: too little text for a number."""
    return {
        "bits_per_byte": None if estimate is None else estimate.bits,
        "standard_error": None if estimate is None else estimate.error,
    }
