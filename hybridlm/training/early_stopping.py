"""Which validation was the best one, and whether the run has stopped getting better.

Two marks: `best` is the lowest bits per byte, whose model is kept; `mark` is the last one that counted as an
improvement of at least `min_improvement`, from which patience counts. Many steps that are each too small can so beat
the best one while the run still ends.

A run that goes on from an older checkpoint than the one that `best` was written before takes steps again, and on a GPU
not to the same bits. `best` is then no model of its history: it stays until the next validation, which writes its own
(`resume`). So `best` is the best model since then, and what the run says of it is true.
"""

from dataclasses import asdict, dataclass
from typing import Any

from hybridlm.errors import UserError
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.setup import RunData


@dataclass
class Seen:
    """What the validations so far said; part of `state.json`."""

    best: float | None = None
    """Lowest bits per byte; None before the first validation, and where its model is not the one in `best`."""
    best_step: int | None = None
    """The step after which it was measured."""
    mark: float | None = None
    """Bits per byte of the last improvement of at least `min_improvement`."""
    waited: int = 0
    """Validations since then."""
    windows: int | None = None
    """Validation sequences that were measured: numbers over others are not compared."""


def early_stopping(config: PretrainConfig, data: RunData, saved: dict[str, Any] | None) -> "EarlyStopping":
    """That of a run, from its start or what its checkpoint says. Raises UserError where there is nothing to see."""
    choice = config.validation
    if choice.patience is not None and data.validation is None:
        raise UserError(
            f"validation.patience={choice.patience}: the data has no validation split, so there is nothing to wait "
            "for. Prepare it with data.prepare.validation.share above 0, or set validation.patience to null."
        )
    return EarlyStopping(choice.patience, choice.min_improvement, saved)


class EarlyStopping:
    """`see` each validation; `stopped` says whether patience has run out. All processes see the same numbers."""

    def __init__(self, patience: int | None, min_improvement: float, saved: dict[str, Any] | None = None):
        self.patience, self.min_improvement = patience, min_improvement
        self.seen = Seen(**saved) if saved else Seen()

    def see(self, step: int, bits_per_byte: float, windows: int) -> bool:
        """Whether the model after `step` is the best one so far."""
        if self.seen.windows != windows:
            self.seen = Seen(windows=windows)
        seen = self.seen
        if seen.mark is None or (bits_per_byte < seen.mark and seen.mark - bits_per_byte >= self.min_improvement):
            seen.mark, seen.waited = bits_per_byte, 0
        else:
            seen.waited += 1
        best = seen.best is None or bits_per_byte < seen.best
        if best:
            seen.best, seen.best_step = bits_per_byte, step
        return best

    @property
    def stopped(self) -> bool:
        return self.patience is not None and self.seen.waited >= self.patience

    def state(self) -> dict[str, Any]:
        return asdict(self.seen)
