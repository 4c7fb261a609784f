"""The registry: every mixer that a pattern can name. A new cell is one file and one line here; a cell that lives
outside the package is registered in the process that uses it."""

from collections.abc import Iterable

from .attention_hybridlm import Attention, SlidingAttention
from .cell_hybridlm import RECURRENT_LAYER as RECURRENT_LAYER
from .cell_hybridlm import Cell
from .cells_acmru import AcmruCell
from .cells_bmru import BmruCell, CmruCell
from .cells_fqbmru import FqbmruCell
from .cells_lru import LruCell
from .cells_mingru import MingruCell
from .cells_nfsm import NfsmCell
from .cells_rglru import RglruCell
from .cells_rnn import GruCell, LstmCell
from .mamba2_hybridlm import Mamba2Mixer

CELLS: dict[str, type[Cell]] = {
    "lru": LruCell,
    "rglru": RglruCell,
    "mingru": MingruCell,
    "bmru": BmruCell,
    "cmru": CmruCell,
    "acmru": AcmruCell,
    "fqbmru": FqbmruCell,
    "nfsm": NfsmCell,
    "gru": GruCell,
    "lstm": LstmCell,
}
"""Recurrences that live inside the shared shell and may stand side by side in one layer."""

ATTENTION = {"attention": Attention, "sliding_attention": SlidingAttention}

STANDALONE = {**ATTENTION, "mamba2": Mamba2Mixer}
"""Mixers that bring their own projections and take a layer of their own."""

MIXERS = {**CELLS, **STANDALONE}

_OURS = frozenset(MIXERS)


def register_cell(name: str, cell: type[Cell]) -> None:
    """Makes a recurrence of your own a mixer that patterns can name, in this process.

    name: a Python identifier, as it stands in patterns and in config.json; cell: a subclass of `Cell`. A checkpoint
    holds the name alone, so whoever loads it registers the cell first. The same name again replaces the class, as when
    a module is reloaded. Raises ValueError where the name is no identifier or a mixer of this package, or the class is
    none.
    """
    if not (isinstance(name, str) and name.isidentifier() and name.isascii() and name[0].isalpha()):
        raise ValueError(f"name={name!r}: must be ASCII letters, digits and '_', a letter first, such as 'leaky'.")
    if name in _OURS:
        raise ValueError(f"name={name!r}: a mixer of hybridlm has this name already. Choose another one.")
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise ValueError(f"cell={cell!r}: must be a class that inherits from hybridlm.Cell.")
    CELLS[name] = MIXERS[name] = cell


def check_carried(blocks: Iterable[str]) -> None:
    """Raises ValueError where layers name a registered cell: the code that lies in a checkpoint does not have it."""
    own = sorted({name for block in blocks for name in block.split("+")} - _OURS)
    if own:
        raise ValueError(
            f"pattern: {', '.join(own)} was registered in this process, and the code that goes along with a checkpoint "
            "does not have it. Save without the code (carry_code(False)), and register it where the model is loaded."
        )
