"""A document as tokens, each with the bytes of the text that it stands for, whatever the tokenizer.

The place of a token is what the tokenizer itself says (its offset mapping), so that it holds for byte-level, unigram
and word-piece vocabularies alike. A token reaches from where the one before it ends to where it ends itself: spaces
that a tokenizer leaves out of its offsets go to the token behind them. A character that is cut into several tokens
belongs to the first of them, and a text is never divided inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hybridlm.data.tokenizer import start_and_end
from hybridlm.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """A document of N tokens behind its start symbol.

    ids (N + 1,) int64: the start symbol first. ends (N,) int64, ascending: UTF-8 bytes of the text up to the end of
    each token; the last one is the size of the text.
    """

    ids: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def before(self, byte: int) -> int:
        """How many tokens lie wholly before a byte of the text at which a token ends."""
        return int(torch.searchsorted(self.ends, byte, right=True))

    def n_bytes(self, first: int, last: int) -> Tensor:
        """Bytes of each of the tokens [first, last), int64."""
        edges = torch.cat([self.ends.new_zeros(1), self.ends])
        return edges[first : last + 1].diff()


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Raises UserError where the tokenizer makes no token of the text, or does not say where its tokens lie."""
    options: Any = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    try:
        found = tokenizer(text, return_offsets_mapping=True, **options)
    except NotImplementedError:
        raise UserError(
            f"tokenizer: a {type(tokenizer).__name__} does not say which characters a token stands for, so no part of "
            "a text can be counted in bytes. Give a checkpoint whose tokenizer has a tokenizer.json."
        ) from None
    ids, offsets = found["input_ids"], found["offset_mapping"]
    if not ids:
        raise UserError(
            f"text: the tokenizer makes no token of its {len(text)} characters. Use the tokenizer of the model."
        )
    ends = _bytes_up_to(text)[torch.tensor(offsets)[:, 1]].cummax(0).values
    ends[-1] = len(text.encode("utf-8"))
    return Tokens(torch.tensor([start_and_end(tokenizer)[0], *ids]), ends)


def common_ends(documents: list[Tokens]) -> Tensor:
    """Bytes, ascending, at which a token ends in each of several tokenizations of one text; the last is its size."""
    ends = documents[0].ends.unique()
    for tokens in documents[1:]:
        ends = ends[torch.isin(ends, tokens.ends)]
    return ends


def _bytes_up_to(text: str) -> Tensor:
    """(characters + 1,) int64: UTF-8 bytes in front of each character, and of the whole text."""
    points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    sizes = 1 + (points > 0x7F).long() + (points > 0x7FF).long() + (points > 0xFFFF).long()
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
