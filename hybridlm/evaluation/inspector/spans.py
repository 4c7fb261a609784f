"""Which characters of a text each token stands for, whatever the tokenizer.

The tokens share the text out without gap or overlap: a token's characters end where they do by the tokenizer's offsets,
so that white space in front of a word belongs to it, and a character of several tokens belongs to the last of them.
Without offsets (tokenizers in pure Python) the tokens are decoded one after another; the text is then what they decode
to, which may differ from the one that was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hybridlm.data.tokenizer import start_and_end
from hybridlm.errors import UserError
from hybridlm.evaluation.reading import token_pieces

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""
_AT_ONCE = 16
"""Decoding: after so many tokens that end with a whole character a new piece is begun."""


@dataclass(frozen=True)
class TokenSpans:
    """ids: what the model reads, the start symbol first. text: the characters of all but the start symbol. ends: where
    the characters of each token end, as long as ids and never falling; those of token t begin at ends[t - 1]."""

    ids: list[int]
    text: str
    ends: list[int]

    def piece(self, token: int) -> str:
        return self.text[self.ends[token - 1] if token else 0 : self.ends[token]]


def token_spans(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> TokenSpans:
    """The first `limit` tokens of a document, start symbol included. Raises UserError where the text has no token."""
    seen = count = 0
    for ids, characters in token_pieces(tokenizer, text):
        seen, count = seen + characters, count + len(ids)
        if count >= limit:
            break
    if count == 0:
        raise UserError(f"text: the tokenizer makes no token of its {len(text)} characters. Use that of the model.")
    start = start_and_end(tokenizer)[0]
    settings: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    if tokenizer.is_fast:
        encoded = tokenizer(text[:seen], return_offsets_mapping=True, **settings)
        ids, ends = list(encoded["input_ids"]), _ends(encoded["offset_mapping"])
    else:
        ids = list(tokenizer(text[:seen], **settings)["input_ids"])[: limit - 1]
        text, ends = _decoded(tokenizer, ids)
    ids, ends = [start, *ids[: limit - 1]], [0, *ends[: limit - 1]]
    return TokenSpans(ids, text[: ends[-1]], ends)


def _ends(offsets: Sequence[tuple[int, int]]) -> list[int]:
    ends, last = [], 0
    for index, (_, end) in enumerate(offsets):
        following = offsets[index + 1][0] if index + 1 < len(offsets) else end
        last = max(last, min(end, following))
        ends.append(last)
    return ends


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, list[int]]:
    """The decoded text, and where each token's characters end in it."""
    whole, ends = "", []
    begin, shown = 0, ""  # ids[begin:] decode to `shown` so far
    for index in range(len(ids)):
        now = str(tokenizer.decode(ids[begin : index + 1], clean_up_tokenization_spaces=False))
        last = index + 1 == len(ids)
        if len(now) > len(shown) and (last or not now.endswith(_UNFINISHED)):  # some decoders leave the bytes out
            whole, shown = whole + now[len(shown) :], now
            if index + 1 - begin > _AT_ONCE:  # the last token stays, since a decoder may drop a space in front
                begin, shown = index, str(tokenizer.decode(ids[index : index + 1], clean_up_tokenization_spaces=False))
        ends.append(len(whole))
    return whole, ends
