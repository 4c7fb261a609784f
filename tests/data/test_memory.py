"""Memory does not grow with the corpus."""

import sys
from pathlib import Path

import pytest
from launching import launch

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="resident sets are counted in kilobytes on Linux only")
def test_peak_memory_of_a_corpus_eight_times_as_large(tmp_path):
    """Seven megabytes more text, in seven thousand documents more, all of it tokenised."""
    done = launch([HERE / "peak_memory.py", tmp_path, "1", "8"], timeout=200)
    assert done.returncode == 0, done.stderr
    small, large = (int(kilobytes) for kilobytes in done.stdout.split())
    assert large - small < 1500
