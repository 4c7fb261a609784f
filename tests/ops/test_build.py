"""The C library as it is built when the package is installed, with a compiler and without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridlm.ops.cpu.sources import FOLDER, LIBRARY, SOURCES, source_hash

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "setup.py"


def build(out, **environment):
    """Runs setup.py outside the tree. Returns its status, what it printed, and the library if there is one."""
    pytest.importorskip("setuptools", reason="setuptools builds the library; pip brings its own")
    if not SETUP.exists():
        pytest.skip("the tests run without the source tree")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(out / "lib"),
        "--build-temp",
        str(out / "temp"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr, next((out / "lib").rglob(LIBRARY), None)


def test_without_a_compiler_the_package_builds_all_the_same(tmp_path):
    status, _, library = build(tmp_path, CC="/bin/false")
    assert status == 0
    assert library is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_with_one_the_library_carries_the_hash_of_its_sources(tmp_path):
    """Without optimisation, in a tenth of the time."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n', encoding="utf-8")
    compiler.chmod(0o755)
    status, printed, library = build(tmp_path, CC=str(compiler))
    assert status == 0, printed
    assert source_hash().encode() in library.read_bytes()


def test_the_sources_are_all_named():
    """One that were not would change without the hash."""
    assert set(SOURCES) == {path.name for path in FOLDER.iterdir() if path.suffix in (".c", ".h")}
