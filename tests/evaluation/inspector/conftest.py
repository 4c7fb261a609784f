"""Recordings made by hand, and a model with every kind of memory unit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybridlm.evaluation.inspector.recording import Recording
from hybridlm.evaluation.inspector.spans import TokenSpans
from hybridlm.evaluation.inspector.units import CellUnits

EVERY_KIND = "bmru+cmru rglru acmru fqbmru"


@pytest.fixture
def every_kind(build):
    """In fp64: whatever the order of its sums, the same states."""
    return build(EVERY_KIND, hidden_size=16, threshold_init=0.3).double()


@pytest.fixture
def ids():
    torch.manual_seed(3)
    return torch.randint(1, 300, (61,)).tolist()


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(signs, writes, start=...) -> a Recording of one cell, 2.0, 2.1, ..., from tables (units, tokens)."""

    def make(signs, writes, start=None):
        signs, writes = np.asarray(signs), np.asarray(writes, dtype=bool)
        units, tokens = signs.shape
        cell = CellUnits(2, "bmru", 0, SimpleNamespace(width=units))
        planes = [np.packbits(plane, axis=1) for plane in (signs > 0, signs == 0, writes)]
        start = np.ones(units, dtype=np.int8) if start is None else np.asarray(start, dtype=np.int8)
        return Recording([cell], tokens, planes[0], planes[1] if (signs == 0).any() else None, planes[2], start)

    return make


@pytest.fixture(scope="session")
def letters():
    """letters(text) -> spans with a token for each character, behind the start symbol."""

    def make(text):
        return TokenSpans(list(range(len(text) + 1)), text, list(range(len(text) + 1)))

    return make
