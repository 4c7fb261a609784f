"""A bistable state set once is there after a million blank steps, bit for bit; a linear one has faded."""

import runpy
import sys
from pathlib import Path

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.persistence import persistence, picture, table

SCRIPT = Path(__file__).parents[2] / "scripts" / "show_persistence.py"


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


@pytest.fixture
def script(monkeypatch, tmp_path):
    """`script("--out", ...)`: the exit code of the script, over 10 blank steps."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["show_persistence.py", "--steps", "10", "--width", "4", *argv])
        return runpy.run_path(str(SCRIPT))["main"]()

    return run


def test_the_script_prints_and_draws(script, capsys):
    assert script("--out", "p.png") == 0
    assert capsys.readouterr().out.endswith("Picture: p.png\n")
    assert Path("p.png").stat().st_size > 5000


def test_the_script_is_worth_running_without_matplotlib(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert script() == 0
    out = capsys.readouterr().out
    assert "blank steps" in out
    assert "No picture: Pictures need matplotlib. Run pip install -c constraints.txt '.[plot]'" in out


def test_the_script_ends_in_one_line(script, capsys, monkeypatch):
    (Path.cwd() / "file").touch()
    assert script("--out", "file/p.png") == 2
    assert "picture file/p.png: cannot be written" in capsys.readouterr().err
    monkeypatch.setattr(
        "hybridlm.evaluation.persistence.persistence", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert script() == 130
    assert capsys.readouterr().err == "show_persistence.py: stopped by Ctrl-C.\n"
