"""A model whose sequences are split over processes: how it is told, and what it cannot do then."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .mixers_hybridlm import MIXERS
from .sequence_hybridlm import SequenceRanks

SPLITTABLE = tuple(name for name, mixer in MIXERS.items() if mixer.passes_state)
"""Mixers that pass a state on by a scan."""


def unsplittable(blocks: Iterable[str]) -> list[str]:
    """Of the layers of a pattern those that need a whole sequence, as "layer 2: attention"."""
    found = []
    for index, block in enumerate(blocks):
        names = [name for name in block.split("+") if not MIXERS[name].passes_state]
        found += [f"layer {index}: {name}" for name in names]
    return found


class SplitsSequences:
    """The part of a model that is told which processes share its sequences."""

    config: Any
    needs_whole_sequences = True
    """Whether its head does."""

    @property
    def sequence_ranks(self) -> SequenceRanks | None:
        """Who shares the sequences of this model; None: nobody."""
        return self._layers()[0].ranks

    def split_sequence(self, ranks: SequenceRanks | None) -> None:
        """From now on each process of `ranks` gives this model its part of every sequence; None: whole sequences again.

        Called by every one of them. The parts of a row follow one another in time and may not be of one length, but for
        the write penalty. Then the model takes `input_ids`, `position_ids` (B, T of the part; 0 begins a document,
        wherever it stands) and `shift_labels` of its part and gives hidden states or logits of its part. All processes
        must run the same forwards and backwards; the sum of their gradients is that of the whole sequences. Raises
        ValueError where a layer or the head needs whole sequences.
        """
        if ranks is not None and self.needs_whole_sequences:
            raise ValueError(
                f"{type(self).__name__} reads whole sequences: they cannot be split over processes. Split those of "
                "HybridLMModel or HybridLMForCausalLM."
            )
        found = [] if ranks is None else unsplittable(self.config.block_types)
        if found:
            raise ValueError(
                f"pattern={self.config.pattern!r}: {', '.join(found)} needs the whole sequence, which cannot be split "
                f"over processes. Use mixers that pass a state on by a scan ({', '.join(SPLITTABLE)}), or give each "
                "process whole sequences."
            )
        for layer in self._layers():
            layer.ranks = ranks

    def _layers(self) -> Any:
        stack: Any = getattr(self, "model", self)
        return stack.layers


def check_part(ranks: SequenceRanks, attention_mask: Any, past_key_values: Any, use_cache: bool | None) -> None:
    """Raises ValueError for what a forward of a part cannot do. Every process must find the same."""
    if past_key_values is not None or use_cache:
        raise ValueError(_told(ranks, "there is no cache of a part. Pass use_cache=False and no past_key_values"))
    if isinstance(attention_mask, dict) or (attention_mask is not None and not bool(attention_mask.all())):
        raise ValueError(_told(ranks, "attention_mask must not hide tokens. Pack documents (position_ids) instead"))


def check_labels(ranks: SequenceRanks | None, labels: Tensor | None) -> None:
    """Raises ValueError where a part is given `labels`."""
    if ranks is not None and labels is not None:
        raise ValueError(_told(ranks, "the target of a part's last token stands in the next part. Give shift_labels"))


def check_generation(ranks: SequenceRanks | None) -> None:
    """Raises ValueError where sequences are split."""
    if ranks is not None:
        raise ValueError(_told(ranks, "text is written by one of them. Call split_sequence(None) first"))


def _told(ranks: SequenceRanks, problem: str) -> str:
    return f"sequences are split over {ranks.size} processes (split_sequence): {problem}."
