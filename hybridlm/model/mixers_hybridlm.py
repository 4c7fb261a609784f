"""The registry: every mixer that a pattern can name. A new cell is one file and one line here."""

from .attention_hybridlm import Attention
from .cell_hybridlm import RECURRENT_LAYER as RECURRENT_LAYER
from .cells_acmru import AcmruCell
from .cells_bmru import BmruCell, CmruCell
from .cells_lru import LruCell
from .cells_mingru import MingruCell
from .cells_rglru import RglruCell

CELLS = {
    "lru": LruCell,
    "rglru": RglruCell,
    "mingru": MingruCell,
    "bmru": BmruCell,
    "cmru": CmruCell,
    "acmru": AcmruCell,
}
"""Recurrences that live inside the shared shell and may stand side by side in one layer."""

STANDALONE = {"attention": Attention}
"""Mixers that bring their own projections and take a layer of their own."""

MIXERS = {**CELLS, **STANDALONE}
