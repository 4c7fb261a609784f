"""The registry: every mixer that a pattern can name. A new cell is one file and one line here."""

from .attention_hybridlm import Attention, SlidingAttention
from .cell_hybridlm import RECURRENT_LAYER as RECURRENT_LAYER
from .cells_acmru import AcmruCell
from .cells_bmru import BmruCell, CmruCell
from .cells_fqbmru import FqbmruCell
from .cells_lru import LruCell
from .cells_mingru import MingruCell
from .cells_nfsm import NfsmCell
from .cells_rglru import RglruCell
from .cells_rnn import GruCell, LstmCell
from .mamba2_hybridlm import Mamba2Mixer

CELLS = {
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
