"""What stops a run before its weights are touched: numbers that are not finite, and a loss that jumps.

A step's loss is a spike where it is above the median of the last `guard.window` losses by more than `guard.spike` times
their spread: 1.4826 x median absolute deviation, which is the standard deviation of a normal distribution and which a
few odd losses do not move, but at least `SMALLEST_SPREAD`, so that losses that hardly differ do not make noise look
like a spike. No loss is judged before `window` of them are known. While the loss falls fast, as early in a run, the
median lies above the newest losses and the spread is wide: the guard is then slow to speak.

The losses are in the checkpoint: a resumed run judges as one that was never stopped.
"""

import statistics
from collections import deque
from collections.abc import Iterable

from hybridlm.errors import UserError
from hybridlm.training.sections import GuardConfig

SMALLEST_SPREAD = 0.01
"""Nats per token."""


class DivergedError(UserError):
    """Loss or gradients are not finite. Raised on every process, before the weights are touched."""


class SpikeError(DivergedError):
    """The loss jumped. Raised on every process, before the weights are touched."""


class OverflowsError(DivergedError):
    """fp16: the gradient overflowed in too many steps in a row. The weights of all of them are as they were."""


class SpikeGuard:
    """`check` before the update, `note` behind it. losses: the last ones, oldest first, as a checkpoint has them."""

    def __init__(self, config: GuardConfig, losses: Iterable[float] = ()):
        self.config = config
        self._losses: deque[float] = deque(losses if config.spike is not None else (), maxlen=config.window)

    @property
    def losses(self) -> list[float]:
        """What a checkpoint keeps; empty where the guard is off."""
        return list(self._losses)

    def limit(self) -> float | None:
        """The largest loss that passes; None while too few are known, or where the guard is off."""
        if self.config.spike is None or len(self._losses) < self.config.window:
            return None
        middle = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - middle) for loss in self._losses)
        return middle + self.config.spike * max(1.4826 * deviation, SMALLEST_SPREAD)

    def check(self, loss: float) -> None:
        """Raises SpikeError where `loss` is a spike."""
        limit = self.limit()
        if limit is not None and loss > limit:
            raise SpikeError(
                f"The loss jumped to {loss:.4f}: the median of the last {self.config.window} steps is "
                f"{statistics.median(self._losses):.4f}, and guard.spike={self.config.spike:g} lets at most "
                f"{limit:.4f} pass. Start the same command with guard.spike=null, or a higher one, to go on from the "
                "newest checkpoint over it; or with a lower optimizer.lr under another run.name."
            )

    def note(self, loss: float) -> None:
        """The step was taken."""
        if self.config.spike is not None:
            self._losses.append(loss)
