"""Bits per byte of a text: the one measure that compares across tokenizers.

    bits per byte = nats of the text's own tokens / (ln 2 * UTF-8 bytes of the text)

The text is one document, start symbol in front. It is cut into windows of `context` tokens; a window's targets reach
one token into the next, so that each token is predicted exactly once, the first from the start symbol. The end symbol
is no part of the text and is not counted. Two ways to treat the cut:

    windows    every window begins anew, as in validation: the score at this context length
    carried    the cache goes on from window to window: the score with everything before in memory
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hybridlm
from hybridlm.data.tokenizer import prompt_ids, start_and_end
from hybridlm.errors import UserError
from hybridlm.evaluation.positions import check_positions
from hybridlm.files import expanded

DEFAULT_ROWS = 8
_LARGEST = 700.0
"""Nats per token; beyond it (or NaN) a model is broken, and its perplexity no number."""


def evaluate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    context: int,
    batch_size: int | None = None,
    carry_state: bool = False,
) -> dict[str, Any]:
    """How well `model` predicts `text`, as plain numbers and strings that can be written as JSON.

    context: tokens in a window. batch_size: windows in one forward; None: 8. carry_state: keep the cache from window to
    window; then windows follow one another and batch_size must be None or 1. The model's dtype is used as it is; the
    logits are normalised in fp32 and summed in fp64.

    Raises UserError where the text has no token, or a number is out of range.
    """
    if context < 1:
        raise UserError(
            f"context={context}: must be at least 1 token. Give the length that the model was trained with, e.g. 256."
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1 window.")
    if carry_state and batch_size not in (None, 1):
        raise UserError(
            f"batch_size={batch_size}: with a carried state the windows follow one another; leave it out, or give 1."
        )
    if not text:
        raise UserError("text: it is empty, so there is nothing to predict. Give a text of at least one character.")
    ids = torch.tensor(prompt_ids(tokenizer, text))
    if len(ids) < 2:
        raise UserError(
            f"text: the tokenizer makes no token of its {len(text)} characters. Use the tokenizer of the model."
        )
    longest = len(ids) - 1 if carry_state else min(context, len(ids) - 1)
    what = f"carry_state: {longest:,} tokens in one go" if carry_state else f"context={context}"
    check_positions(model, longest, what, "Give a context of at most {limit} and carry no state.")
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            score = (
                _carried(model, ids, context)
                if carry_state
                else _windows(model, ids, context, batch_size or DEFAULT_ROWS)
            )
    finally:
        model.train(training)
    nats, n_tokens, n_bytes = float(score), len(ids) - 1, len(text.encode("utf-8"))
    if not nats / n_tokens < _LARGEST:
        raise UserError(f"the model's predictions are not finite in {model.dtype}. Measure with dtype float32.")
    return {
        "bits_per_byte": nats / (math.log(2) * n_bytes),
        "perplexity_per_token": math.exp(nats / n_tokens),
        "nats": nats,
        "n_bytes": n_bytes,
        "n_tokens": n_tokens,
        "context": context,
        "carry_state": carry_state,
        "tokenizer_is_lossless": _decode(tokenizer, ids[1:]) == text,
    } | facts_of(model, tokenizer)


def facts_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *others: ModuleType) -> dict[str, Any]:
    """What a number depends on besides the text: symbols, vocabulary, dtype, device, model, versions."""
    modules: tuple[Any, ...] = (hybridlm, torch, transformers, *others)
    return {
        "start_symbol": tokenizer.convert_ids_to_tokens(start_and_end(tokenizer)[0]),
        "end_symbol_counted": False,
        "vocab_size": len(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pattern": getattr(model.config, "pattern", None),
        "epsilon": getattr(model, "epsilon", None),
        "versions": {module.__name__: module.__version__ for module in modules},
    }


def read_file(path: str | Path) -> str:
    """A UTF-8 text file, as preparation reads it: line ends as \\n, no byte-order mark.

    Raises UserError: unreadable, empty, or no text, with the place of the first byte that is none.
    """
    path = expanded(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(f"text file {path}: cannot be read ({error.strerror}). Give the path of a text file.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"text file {path}: byte {error.start} is not UTF-8. Give plain text, converted to UTF-8."
        ) from None
    if "\0" in text:
        raise UserError(f"text file {path}: byte {data.index(0)} is 0, so this is a binary file. Give plain text.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text:
        raise UserError(f"text file {path}: it is empty. Give a text of at least one character.")
    return text


def _windows(model: PreTrainedModel, ids: Tensor, context: int, rows: int) -> Tensor:
    """Nats of ids[1:], every window on its own.

    Full windows go in batches; the short last one goes alone, so nothing is padded.
    """
    total = torch.zeros((), dtype=torch.float64)
    inputs, targets = ids[:-1], ids[1:]
    full = len(inputs) // context * context
    for batch in zip(_rows(inputs[:full], context, rows), _rows(targets[:full], context, rows), strict=True):
        total += _nats(model, *batch)
    if full < len(inputs):
        total += _nats(model, inputs[full:].unsqueeze(0), targets[full:].unsqueeze(0))
    return total


def _rows(ids: Tensor, context: int, rows: int) -> tuple[Tensor, ...]:
    return ids.view(-1, context).split(rows) if len(ids) else ()


def _carried(model: PreTrainedModel, ids: Tensor, context: int) -> Tensor:
    """Nats of ids[1:] in one pass, `context` tokens a call, the cache carried on."""
    total, cache = torch.zeros((), dtype=torch.float64), None
    for inputs, targets in zip(ids[:-1].split(context), ids[1:].split(context), strict=True):
        output = model(input_ids=inputs.unsqueeze(0).to(model.device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        total += _sum(output.logits, targets.unsqueeze(0))
    return total


def _nats(model: PreTrainedModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """inputs, targets (B, T) -> nats of all targets."""
    return _sum(model(input_ids=inputs.to(model.device), use_cache=False).logits, targets)


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Row by row: the fp32 copy of the logits is as large as one row only."""
    total = torch.zeros((), dtype=torch.float64)
    for row, wanted in zip(logits, targets.to(logits.device), strict=True):
        total += F.cross_entropy(row.float(), wanted, reduction="none").cpu().double().sum()
    return total


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
