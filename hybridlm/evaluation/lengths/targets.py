"""Which bytes of a text are predicted: the same ones by every checkpoint, with every length of context.

Of each document that has at least as many tokens as the longest length L, whoever tokenizes it, everything is predicted
from the first place on that has L - L // 2 tokens before it. Where such a part begins, and where it is cut into pieces
for the standard errors, a token ends in every tokenizer, so that all models predict exactly the same bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridlm.errors import UserError
from hybridlm.evaluation.lengths.labels import shown
from hybridlm.evaluation.lengths.tokens import Tokens, common_ends

PIECES = 32
"""Consecutive pieces of about the same size that the targets are cut into; more where there are more documents."""
FEWEST = 8
"""Pieces below which a standard error means nothing."""
SHORTEST = 3
"""The least that the longest of two lengths can be: `check_lengths` asks for at least 2 tokens, and for two lengths."""


@dataclass(frozen=True)
class Targets:
    """What is predicted of a document. document: its place among the texts. cuts (pieces + 1,) int64: bytes."""

    document: int
    cuts: Tensor

    def span(self, tokens: Tokens) -> tuple[int, int]:
        """First token, and the one behind the last."""
        return tokens.before(int(self.cuts[0])), tokens.before(int(self.cuts[-1]))

    def sums(self, tokens: Tokens, values: Tensor) -> Tensor:
        """values, one for each token of the span -> (pieces,) float64."""
        first = self.span(tokens)[0]
        places = [tokens.before(int(cut)) - first for cut in self.cuts]
        running = torch.cat([torch.zeros(1, dtype=torch.float64), values.double().cumsum(0)])
        return running[places].diff()

    @property
    def n_bytes(self) -> Tensor:
        """(pieces,) int64."""
        return self.cuts.diff()


def plan(texts: Sequence[list[Tokens]], longest: int, names: Sequence[str]) -> list[Targets]:
    """The targets of `texts`, each as the tokens of every checkpoint; names: of the texts, for errors.

    Raises UserError where no text has `longest` tokens, or there is too little text for standard errors.
    """
    sizes = _sizes(texts)
    targets = _cut(texts, longest)
    pieces = _pieces(targets)
    if max(sizes) < longest:
        text = names[sizes.index(max(sizes))]
        raise UserError(
            f"lengths: the longest is {shown(longest)}, the longest text, {text}, has {max(sizes):,} tokens. "
            f"{_advice(texts)}"
        )
    if pieces < FEWEST:
        raise UserError(
            f"text: behind the first half of the longest length, {shown(longest)}, there are {pieces} places to cut it "
            f"at, and a standard error needs {FEWEST} pieces. {_advice(texts)}"
        )
    return targets


def _sizes(texts: Sequence[list[Tokens]]) -> list[int]:
    """Tokens of each text, in the tokenizer that makes the fewest."""
    return [min(map(len, documents)) for documents in texts]


def _cut(texts: Sequence[list[Tokens]], longest: int) -> list[Targets]:
    """What can be predicted of the texts that are long enough; none: nothing can."""
    spans = {}
    for at, (documents, size) in enumerate(zip(texts, _sizes(texts), strict=True)):
        if size < longest:
            continue
        ends = common_ends(documents)
        enough = max(int(tokens.ends[longest - longest // 2 - 1]) for tokens in documents)
        ends = ends[ends >= enough]
        if len(ends) > 1:
            spans[at] = ends
    total = sum(int(ends[-1] - ends[0]) for ends in spans.values())
    targets = []
    for at, ends in spans.items():
        pieces = max(1, round(PIECES * int(ends[-1] - ends[0]) / total))
        wanted = torch.linspace(float(ends[0]), float(ends[-1]), pieces + 1, dtype=torch.float64)
        targets.append(Targets(at, ends[torch.searchsorted(ends, wanted.round().long())].unique()))
    return targets


def _pieces(targets: Sequence[Targets]) -> int:
    return sum(len(each.n_bytes) for each in targets)


def _advice(texts: Sequence[list[Tokens]]) -> str:
    """Up to which length these texts will do."""

    def is_too_long(length: int) -> bool:
        return _pieces(_cut(texts, length)) < FEWEST

    most = bisect_left(range(max(_sizes(texts)) + 1), True, key=is_too_long) - 1
    if most < SHORTEST:
        return "These texts are too short for any lengths: give a longer one."
    return f"Give lengths up to {most:,}, or a longer text; several times that length makes sure numbers."
