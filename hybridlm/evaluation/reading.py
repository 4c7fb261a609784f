"""A text read once into a state, and states for `generate` to begin from.

The model goes over the text in calls of a fixed number of tokens and keeps its cache alone. Without full attention in
the pattern that is all that it ever keeps: memory while reading, and the size of the state, do not depend on the
length of the text. The last token stays pending, so that an answer can begin behind it without another one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from hybridlm.data.tokenizer import start_and_end
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import read_file
from hybridlm.evaluation.loading import load_checkpoint
from hybridlm.evaluation.places import check_out
from hybridlm.files import expanded
from hybridlm.model.cell_hybridlm import FULL_ATTENTION
from hybridlm.model.conversation_hybridlm import Conversation
from hybridlm.model.snapshot_hybridlm import take
from hybridlm.model.statefile_hybridlm import read_header

CALL = 1024
"""Tokens that go through the model in one call."""
PIECE = 1 << 16
"""Characters that are tokenized at once, where the tokenizer can be cut."""

Progress = Callable[[int, float], None]
"""Told after every call: tokens so far, and the share of the text that they come from."""


def read_book(
    checkpoint: str | Path,
    book: str | Path,
    out: str | Path,
    *,
    after: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reads a UTF-8 text with a checkpoint and writes the state to `out`, one file; returns the facts.

    after: a state to go on from, with the text as its continuation; None: the text begins a document. Raises UserError:
    no such checkpoint, text or state, a state of another model or tokenizer, a place that cannot be written to.
    """
    out = expanded(out)
    check_place(out)
    text = read_file(book)
    model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
    check_kind(model)
    before = None if after is None else load_state(model, tokenizer, after)
    if before is not None and before.attention_mask is not None and not bool(before.attention_mask.all()):
        raise UserError(f"state file {after}: its text is padded, and cannot be read on. Read the text again, alone.")
    start = time.perf_counter()
    talk, tokens = read_text(model, tokenizer, text, after=before, progress=progress)
    seconds = time.perf_counter() - start
    talk.notes = {"text": Path(book).name}
    save_state(model, tokenizer, talk, out)
    return {
        "characters": len(text),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "state": str(out),
        "state_bytes": out.stat().st_size,
        "cache_bytes": cache_bytes(talk.cache),
        "grows": FULL_ATTENTION in model.config.layer_types,
        "pattern": model.config.pattern,
        "device": str(model.device),
    }


def render(facts: dict[str, Any]) -> str:
    """The facts of `read_book` as lines for a terminal."""
    size = (
        f"it grows with the text, since {facts['pattern']} has full attention"
        if facts["grows"]
        else "however long the text is"
    )
    return "\n".join(
        (
            f"Read:   {facts['characters']:,} characters, {facts['tokens']:,} tokens",
            f"Speed:  {facts['tokens_per_second']:,.0f} tokens/s on {facts['device']}, {facts['seconds']:.1f} s",
            f"State:  {facts['state']}, {facts['state_bytes']:,} bytes, {size}",
        )
    )


@torch.no_grad()
def read_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    after: Conversation | None = None,
    progress: Progress | None = None,
) -> tuple[Conversation, int]:
    """What a hybridlm model remembers of a text, and how many tokens that was, start symbol included.

    All tokens but the last have gone through the cache; the last one is pending. after: a conversation of one row,
    which is moved on. Raises UserError where there is not a token to read.
    """
    cache = DynamicCache(config=model.config) if after is None else after.cache
    carried = [start_and_end(tokenizer)[0]] if after is None else _pending(after)
    own = cut = read = 0
    for ids, characters in token_pieces(tokenizer, text):
        own += len(ids)
        cut += characters
        carried += ids
        left, start = len(carried), 0
        while left > (CALL if cut < len(text) else 1):  # the last token of the text is left
            chunk = torch.tensor([carried[start : start + min(CALL, left - 1)]], device=model.device)
            # The stack without the head: nothing is predicted while reading.
            model.base_model(input_ids=chunk, past_key_values=cache, use_cache=True)
            start, left, read = start + chunk.shape[1], left - chunk.shape[1], read + chunk.shape[1]
            if progress is not None:
                progress(read, read / (read + left) * cut / len(text))
        carried = carried[start:]
    if own == 0:
        raise UserError(f"text: the tokenizer makes no token of its {len(text)} characters. Use that of the model.")
    talk = Conversation(cache, pending_ids=torch.tensor([carried], device=model.device))
    return talk, own + (after is None)


def token_pieces(tokenizer: PreTrainedTokenizerBase, text: str, size: int = PIECE) -> Iterator[tuple[list[int], int]]:
    """The tokens of a text without special ones, piece by piece, with the number of characters that each stands for.

    The same tokens as of the whole text: it is cut in front of single spaces between words, where a byte-level
    tokenizer always cuts; for any other tokenizer there is one piece.
    """
    start = 0
    while start < len(text):
        end = _cut(text, start + size) if _cuts_at_spaces(tokenizer) else len(text)
        ids = tokenizer(text[start:end], add_special_tokens=False, split_special_tokens=True, verbose=False)
        yield list(ids["input_ids"]), end - start
        start = end


def load_state(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> Conversation:
    """A state of one row that `read_book` or `save_cache` wrote, for this model and tokenizer.

    Raises UserError: no such file, damaged, of another model or tokenizer, of several rows, not of hybridlm.
    """
    path = expanded(path)
    check_kind(model)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: that is a folder. Give a file that `hybridlm read --out` wrote.")
        talk = model.load_conversation(path)  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None)  # None: our own words, which name the file
        raise UserError(f"state file {f'{path}: cannot be read ({why}).' if why else error}") from None
    made_with = talk.notes.get("tokenizer")
    if made_with not in (None, tokenizer_fingerprint(tokenizer)):
        raise UserError(
            f"state file {path}: it was read with another tokenizer. Put that tokenizer into the checkpoint, or read "
            "the text again."
        )
    if talk.rows != 1:
        raise UserError(f"state file {path}: it holds {talk.rows} rows, of a batch. Give the state of a single text.")
    return talk


def save_state(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    talk: Conversation,
    path: Path,
    option: str = "another --out",
) -> None:
    """Writes a state that `load_state` reads; an older file there is replaced. Raises UserError where it cannot."""
    talk.notes["tokenizer"] = tokenizer_fingerprint(tokenizer)
    rest = {"pending_ids": talk.pending_ids, "attention_mask": talk.attention_mask, "notes": talk.notes}
    try:
        model.save_cache(talk.cache, path, **rest)  # pyright: ignore[reportCallIssue]
    except OSError as error:
        reason = f"{path}: cannot be written ({error.strerror})." if error.strerror else error
        raise UserError(f"state file {reason} Give {option}.") from None


def new_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Tokens (1, T) of a text that continues another: no start symbol, T = 0 for an empty one."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return torch.tensor([ids], dtype=torch.long)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def cache_bytes(cache: Cache) -> int:
    """Bytes that the layers of a cache hold at the moment."""
    return sum(tensor.nbytes for layer in take(cache) for tensor in layer.tensors.values())


@contextmanager
def progress_line(file: TextIO, pause: float | None = None) -> Iterator[Progress]:
    """A Progress that keeps one line on a terminal up to date, and writes one after another elsewhere, at most every
    `pause` seconds (None: half a second on a terminal, half a minute elsewhere)."""
    start = last = time.perf_counter()
    width, terminal = 0, file.isatty()
    if pause is None:
        pause = 0.5 if terminal else 30.0

    def show(tokens: int, share: float) -> None:
        nonlocal last, width
        now = time.perf_counter()
        if now - last < pause:
            return
        last = now
        line = f"{share:4.0%}  {tokens:,} tokens, {tokens / (now - start):,.0f} a second"
        if terminal:
            print(f"\r{line:<{width}}", end="", file=file, flush=True)
            width = len(line)
        else:
            print(line, file=file, flush=True)

    try:
        yield show
    finally:
        if width:
            print(f"\r{'':<{width}}\r", end="", file=file, flush=True)


def _pending(talk: Conversation) -> list[int]:
    return [] if talk.pending_ids is None else talk.pending_ids[0].tolist()


def _cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space between two words always begins a token: byte-level BPE behind GPT-2's pattern does that."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "pre_tokenizer", None)
    return (
        isinstance(before, pre_tokenizers.ByteLevel)
        and before.use_regex
        and not before.add_prefix_space
        and getattr(backend, "normalizer", None) is None
        and all(token.special for token in tokenizer.added_tokens_decoder.values())
    )


def _cut(text: str, near: int) -> int:
    """The first place from `near` on that is a single space between two words; else the end."""
    place = text.find(" ", near)
    while place != -1 and place + 1 < len(text):
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
        place = text.find(" ", place + 1)
    return len(text)


def check_kind(model: PreTrainedModel) -> None:
    if model.config.model_type != "hybridlm":
        raise UserError(
            f"the checkpoint's model_type is {model.config.model_type!r}: states are read and saved for checkpoints of "
            "hybridlm only."
        )


def check_place(out: Path, option: str = "--out") -> None:
    """Before an hour of reading: can the state be written there, and would it replace a state only?"""
    check_out(out, option)
    if out.exists():
        try:
            read_header(out)
        except (OSError, ValueError):
            raise UserError(f"{option} {out}: a file that is no state stands there. Give another name.") from None
