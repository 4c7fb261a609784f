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


def needed_browser() -> str:
    """The program. Raises UserError where there is none."""
    program = browser()
    if program is None:
        raise UserError(f"no browser: none of {', '.join(NAMES)} is on the PATH. Install Chromium.")
    return program


def screenshot(page: Path, out: Path, *, fragment: str = "", width: int = 1300, height: int = 900) -> Path:
    """A PNG of the top of a page, in pixels. fragment: with its #. Raises UserError where there is no browser or page,
    or no picture was made."""
    program = needed_browser()
    if not page.is_file():
        raise UserError(f"page {page}: there is no such file.")
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.png"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += ["--virtual-time-budget=10000", f"--screenshot={made}", page.resolve().as_uri() + fragment]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            if not made.is_file() or not made.stat().st_size:
                raise UserError(f"{program}: no picture. It said: {done.stderr.strip()[-200:] or 'nothing'}")
            shutil.copyfile(made, out)
        except subprocess.TimeoutExpired:
            raise UserError(f"{program}: no picture after {PATIENCE:.0f} seconds.") from None
        except OSError as error:
            raise UserError(f"{program}: no picture ({error}).") from None
    return out
