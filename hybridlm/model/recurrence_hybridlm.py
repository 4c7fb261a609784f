"""One call of the cells of a layer: read their states from the cache, run them, sum what they emit, move the cache on.

Shared by the shell, whose cells stand side by side on the same input, and by mixers that bring their own projections
and hold one cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache_hybridlm import HybridRecurrentLayer
from .cell_hybridlm import Cell, State
from .conv_hybridlm import ShortConv, Window
from .sequence_hybridlm import sharing


def convolve(
    conv: ShortConv | None, v: Tensor, mask: Tensor | None, reset: Tensor | None, cache: HybridRecurrentLayer | None
) -> tuple[Tensor, Window | None]:
    """The convolution of v (B, T, N), behind the inputs that the cache holds, and its window; v and None without
    one."""
    if conv is None:
        return v, None
    past = cache.conv if cache is not None and cache.is_initialized else None
    if (ranks := sharing()) is not None and conv.kernel > 1:
        past = ranks.window(_tail(v, reset, conv.kernel - 1))
    return conv(v, past, mask, reset, keep_window=cache is not None)


def _tail(v: Tensor, reset: Tensor | None, taps: int) -> Tensor:
    """What the part to the right of this one sees of v, (B, K-1, N): zeros for what belongs to an earlier document."""
    if v.shape[1] < taps:
        raise ValueError(
            f"a part of {v.shape[1]} tokens is shorter than the {taps} inputs that the convolution of the next part "
            f"reaches back. Give each process at least {taps} tokens of a sequence, or lower conv_kernel={taps + 1}."
        )
    return Window(v, None if reset is None else reset.long().cumsum(1), taps, None).tail()


def advance(
    cells: Sequence[Cell],
    v: Tensor,
    window: Window | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cache: HybridRecurrentLayer | None,
) -> Tensor:
    """The sum of what the cells emit on v, (B, T, width); mask, reset (B, T) bool or None.

    The cache, if given, is read and moved on by T tokens, together with the convolution's `window` over them.
    """
    held = cache.states if cache is not None and cache.is_initialized else {}
    total, trajectories = None, []
    ranks = sharing()
    for i, cell in enumerate(cells):
        carried = 0 if ranks is None else ranks.carried
        h, states = cell(v, _state_of(cell, i, held, v), mask, reset)
        if ranks is not None and ranks.carried == carried:
            raise ValueError(
                f"{type(cell).__name__} did not pass its state on to the next process. Run the state through a scan of "
                "scan_hybridlm, or say passes_state = False in the class."
            )
        total = h if total is None else total + h
        trajectories.append(states)
    assert total is not None
    if cache is not None:
        last = _named([{name: steps[:, -1] for name, steps in states.items()} for states in trajectories])
        replay = Replay(cells, v, mask, reset, trajectories) if cache.record_past else None
        cache.append(v.shape[1], last, window, replay)
    return total


@dataclass
class Replay:
    """Finds the states inside a call again, for a cache that takes steps back.

    They are looked up where a cell returned the states after every token; a cell that returned the last alone runs
    again over the beginning.
    """

    cells: Sequence[Cell]
    v: Tensor
    mask: Tensor | None
    reset: Tensor | None
    trajectories: list[State]

    def __call__(self, before: State, kept: int) -> State:
        """The states after the call's first `kept` tokens, as the cache names them; before: those at its start."""
        found = []
        for i, (cell, states) in enumerate(zip(self.cells, self.trajectories, strict=True)):
            if next(iter(states.values())).shape[1] != self.v.shape[1]:
                mask, reset = (None if flags is None else flags[:, :kept] for flags in (self.mask, self.reset))
                _, states = cell(self.v[:, :kept], _state_of(cell, i, before, self.v), mask, reset)
                found.append({name: steps[:, -1] for name, steps in states.items()})
            else:
                found.append({name: steps[:, kept - 1] for name, steps in states.items()})
        return _named(found)


def initial_states(cells: Sequence[Cell], rows: int, device: torch.device) -> State:
    """s_0 of cells side by side, as the cache names them."""
    return _named([cell.initial_state(rows, device) for cell in cells])


def states_of(cells: Sequence[Cell], held: State) -> list[State]:
    """The states of each cell out of those that a cache holds."""
    return [{name: held[f"{i}.{name}"] for name in cell.state_names} for i, cell in enumerate(cells)]


def _state_of(cell: Cell, i: int, held: State, like: Tensor) -> State:
    if not held:
        return cell.initial_state(like.shape[0], like.device)
    return {name: held[f"{i}.{name}"].to(like.device) for name in cell.state_names}


def _named(states: Sequence[State]) -> State:
    """Those of all cells under the names of the cache: cells side by side may have states of one name."""
    return {f"{i}.{name}": state for i, own in enumerate(states) for name, state in own.items()}
