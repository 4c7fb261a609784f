"""What the memory recurrent units share: candidate, threshold, and the share of units that write.

    c_t = W_c x_t + b_c          candidate (drive)
    beta_t = |W_beta x_t + b_beta|    threshold
    z_t = H(|c_t| - beta_t)      1 = write, 0 = hold

De Geeter, Lambrechts, Ernst, Drion, *Parallelizable memory recurrent units*, arXiv 2601.09495.
"""

from torch import Tensor, nn

from .cell_hybridlm import Cell, starting, wide
from .surrogate_hybridlm import heaviside


class MemoryCell(Cell):
    """A cell that writes or holds. `record_writes` keeps the mean of z of the last forward, for a penalty or a log."""

    epsilon: float

    def __init__(self, config):
        super().__init__(config)
        self.slope = float(config.surrogate_slope)
        self.candidate = nn.Linear(self.width, self.width)
        self.threshold = starting(nn.Linear(self.width, self.width), bias=config.threshold_init)
        self.record_writes = False
        self.write_share: Tensor | None = None

    def drive(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """c and beta, (B, T, N) each, fp32."""
        c, beta = wide(self.candidate(x)), wide(self.threshold(x)).abs()
        if self.record_writes:
            z = heaviside(c.abs() - beta, self.slope)
            self.write_share = z.mean() if mask is None else z[mask].mean()
        return c, beta
