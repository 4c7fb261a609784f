"""Figures of units against tables made by hand, and against loops."""

import numpy as np
import pytest

from hybridlm.evaluation.inspector import recording
from hybridlm.evaluation.inspector.figures import unit_figures


def test_figures_of_a_table(by_hand):
    signs = [[1, 1, -1, -1, -1, -1, 1, 1], [-1] * 8, [1, -1] * 4]
    writes = [[0, 0, 1, 0, 0, 0, 1, 1], [0] * 8, [1] * 8]
    first, dead, always = unit_figures(by_hand(signs, writes, start=[1, -1, 1]))
    assert (first.write_share, first.plus_share, first.changes) == (3 / 8, 4 / 8, 2)
    assert (first.median_hold, first.longest, first.holds, first.kind) == (2.5, 3, [1, 0, 1], "")
    assert (dead.kind, dead.median_hold, dead.longest, dead.holds, dead.changes) == ("dead", None, 8, [], 0)
    assert (always.kind, always.longest, always.holds, always.changes) == ("always", 0, [7], 7)
    (turned,) = unit_figures(by_hand([[-1, -1]], [[1, 0]], start=[1]))
    assert (turned.changes, turned.holds, turned.median_hold, turned.longest) == (1, [], None, 1)


def test_figures_of_random_tables(by_hand, monkeypatch):
    monkeypatch.setattr(recording, "AT_ONCE", 3)
    generator = np.random.default_rng(0)
    writes = generator.random((8, 301)) < generator.random((8, 1)) ** 3
    signs = generator.integers(-1, 2, (8, 301))
    for unit, found in enumerate(unit_figures(by_hand(signs, writes, start=[0] * 8))):
        holds, since, silent, longest = [], None, 0, 0
        for token in range(301):
            silent = 0 if writes[unit, token] else silent + 1
            longest = max(longest, silent)
            if writes[unit, token]:
                holds += [] if since is None else [token - since]
                since = token
        assert found.write_share == pytest.approx(writes[unit].sum() / 301)
        assert found.longest == longest
        assert sum(found.holds) == len(holds)
        for k, count in enumerate(found.holds):
            assert count == sum(2**k <= hold < 2 ** (k + 1) for hold in holds)
        before = [0, *signs[unit][:-1]]
        assert found.changes == sum(a != b for a, b in zip(before, signs[unit], strict=True))


def test_always_writing_begins_at_99_percent(by_hand):
    writes = np.ones((2, 200), dtype=bool)
    writes[0, :2], writes[1, :3] = False, False
    assert [each.kind for each in unit_figures(by_hand(np.ones((2, 200)), writes))] == ["always", ""]
