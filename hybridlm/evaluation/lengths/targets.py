"""Which bytes of a text are predicted: the same ones by every checkpoint, with every length of context.

Of each document that has at least as many tokens as the longest length L, whoever tokenizes it, everything is predicted
from the first place on that has L - L // 2 tokens before it. Where such a part begins, and where it is cut into pieces
for the standard errors, a token ends in every tokenizer, so that all models predict exactly the same bytes.
"""

from __future__ import annotations

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
    sizes = [min(map(len, documents)) for documents in texts]
    if max(sizes) < longest:
        text = names[sizes.index(max(sizes))]
        raise UserError(
            f"lengths: the longest is {shown(longest)}, the longest text, {text}, has {max(sizes):,} tokens. Give "
            f"lengths up to {max(sizes):,}, or a longer text; several times that length makes sure numbers."
        )
    spans = {}
    for at, documents in enumerate(texts):
        if sizes[at] < longest:
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
    pieces = sum(len(each.n_bytes) for each in targets)
    if pieces < FEWEST:
        raise UserError(
            f"text: behind the first half of the longest length, {shown(longest)}, there are {pieces} places to cut it "
            f"at, and a standard error needs {FEWEST} pieces. Give a longer text."
        )
    return targets
