"""Memory that is kept: what the process holds then, and that it gives it back."""

import json
import sys
from pathlib import Path

import pytest
import torch
from launching import launch

from hybridlm import allocator
from hybridlm.allocator import _glibc, kept_memory, returned_memory

MIB = 2**20

if _glibc() is None or not Path("/proc/self/statm").exists():
    pytest.skip("the C library is not glibc, which alone can be told to keep memory", allow_module_level=True)


def resident():
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_it_is_there_by_the_name_of_the_package():
    code = "import hybridlm\nwith hybridlm.allocator.kept_memory() as kept: print(kept)"
    done = launch(["-c", code], imported="libraries")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def _allocate_and_free():
    """How much more is held than at the start."""
    start, held = resident(), []
    with kept_memory() as kept, kept_memory():
        for size in (64, 256, 1024):
            block = torch.ones(size * MIB // 4)
            del block
            held.append(resident() - start)
        with kept_memory():
            pass
        held.append(resident() - start)
    held.append(resident() - start)
    return kept, held


def in_a_process_of_its_own(name):
    """What one of this file's functions returns there, where no other test has shaped the memory."""
    done = launch([__file__, name])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_keeps_what_it_freed_and_gives_it_back():
    kept, (small, middle, large, nested, after) = in_a_process_of_its_own("_allocate_and_free")
    assert kept
    assert small > 60 * MIB
    assert middle > 250 * MIB
    assert large > 1000 * MIB
    assert nested > 1000 * MIB  # the outermost alone gives back
    assert after < 60 * MIB


def _return():
    with returned_memory() as possible, kept_memory():
        start, held = resident(), []
        for size in (2**18, 2**26):
            blocks = [torch.ones(size // 4) for _ in range(2**28 // size)]
            held.append(resident() - start)
            del blocks
            held.append(resident() - start)
    return possible, held


def test_or_gives_back_what_it_frees_at_once():
    possible, (small, after_small, large, after_large) = in_a_process_of_its_own("_return")
    assert possible
    assert min(small, large) > 250 * MIB
    assert max(after_small, after_large) < 30 * MIB


def test_an_error_inside_closes_it():
    with pytest.raises(KeyError), kept_memory():
        raise KeyError
    assert allocator._open == 0


def test_a_release_that_takes_no_large_threshold(monkeypatch):
    """Then the largest that it takes; without one, every block would be handed back."""
    asked = []

    class Old:
        def mallopt(self, parameter, value):
            asked.append((parameter, value))
            return int(parameter != allocator._MMAP_THRESHOLD or value <= 2**25)

        def malloc_trim(self, _):
            pass

    monkeypatch.setattr(allocator, "_glibc", Old)
    with kept_memory():
        assert asked == [(-3, 2**31 - 1), (-3, 2**25), (-1, -1)]


def test_another_c_library(monkeypatch):
    monkeypatch.setattr("hybridlm.allocator._glibc", lambda: None)
    with kept_memory() as kept:
        assert kept is False


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
