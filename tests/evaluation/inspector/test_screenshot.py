"""Pictures of pages, where there is no browser or it makes none."""

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.browser import screenshot


def test_no_browser(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"none of chromium, .* is on the PATH. Install Chromium"):
        screenshot(tmp_path / "page.html", tmp_path / "page.png")


def test_browser_that_makes_no_picture(monkeypatch, tmp_path):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho cannot draw >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"page .*page\.html: there is no such file"):
        screenshot(tmp_path / "page.html", tmp_path / "page.png")
    (tmp_path / "page.html").write_text("")
    with pytest.raises(UserError, match=r"no picture.*cannot draw"):
        screenshot(tmp_path / "page.html", tmp_path / "page.png")
    program.write_text("no program")
    with pytest.raises(UserError, match="no picture"):
        screenshot(tmp_path / "page.html", tmp_path / "page.png")
    assert not (tmp_path / "page.png").exists()
