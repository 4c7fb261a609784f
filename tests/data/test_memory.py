"""Memory does not grow with the corpus."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="resident sets are counted in kilobytes on Linux only")
def test_peak_memory_of_a_corpus_eight_times_as_large(tmp_path):
    """Seven megabytes more text, in seven thousand documents more, all of it tokenised."""
    paths = [str(HERE.parents[1]), str(HERE)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "peak_memory.py"), str(tmp_path), "1", "8"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    small, large = (int(kilobytes) for kilobytes in done.stdout.split())
    assert large - small < 1500
