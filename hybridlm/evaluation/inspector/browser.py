"""Headless Chromium, where there is one: pictures of pages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from hybridlm.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0
"""Seconds that the browser gets."""


def browser() -> str | None:
    """The program; None where there is none on the PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def screenshot(page: Path, out: Path, *, fragment: str = "", width: int = 1300, height: int = 900) -> Path:
    """A PNG of the top of a page, in pixels. fragment: with its #. Raises UserError where there is no browser, or it
    made no picture."""
    program = browser()
    if program is None:
        raise UserError(f"no browser: none of {', '.join(NAMES)} is on the PATH. Install Chromium.")
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.png"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += ["--virtual-time-budget=10000", f"--screenshot={made}", page.resolve().as_uri() + fragment]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise UserError(f"{program}: no picture after {PATIENCE:.0f} seconds.") from None
        if not made.is_file():
            raise UserError(f"{program}: no picture ({done.stderr.strip().splitlines()[-1:]}).")
        shutil.copyfile(made, out)
    return out
