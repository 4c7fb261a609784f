"""A bistable state set once is there after a million blank steps, bit for bit; a linear one has faded."""

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.persistence import persistence, picture, table


def test_a_million_blank_steps_in_bfloat16(tmp_path):
    rows = persistence(1_000_000, width=16)
    assert [row["step"] for row in rows] == [0, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    assert all(row["bmru"] == 1.0 and row["bmru_unchanged"] for row in rows)
    faded = [row["lru"] for row in rows]
    assert faded[0] == 1.0
    assert faded[:5] == sorted(set(faded[:5]), reverse=True)
    assert faded[-1] < 1e-12
    assert "CHANGED" not in table(rows)
    assert picture(rows, tmp_path / "p.png").stat().st_size > 5000


def test_bad_input():
    with pytest.raises(UserError, match="steps=0"):
        persistence(0)
