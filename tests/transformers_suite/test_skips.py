"""The table of skips: what it holds exists, and what differs from it is found."""

from fnmatch import fnmatchcase

import fetch
import pytest
import skips

PATTERN = "rglru lru"


def test_a_skip_that_the_table_does_not_have_is_found():
    assert skips.problem("test_save_load", PATTERN, set()) is None
    assert "does not say: no reason" in skips.problem("test_save_load", PATTERN, {"no reason"})


def test_a_test_that_is_no_longer_skipped_is_found():
    said = {"test requires accelerator"}
    assert skips.problem("test_cpu_offload", PATTERN, said) is None
    assert "says that it is skipped" in skips.problem("test_cpu_offload", PATTERN, set())
    assert "for another reason" in skips.problem("test_cpu_offload", PATTERN, said | {"test is slow"})


def test_an_entry_holds_for_its_patterns_alone():
    said = {"the pattern has no sliding_attention"}
    assert skips.problem("test_sliding_window_mask", "rglru attention", said) is None
    assert skips.problem("test_sliding_window_mask", "rglru sliding_attention", said) is not None


def test_a_missing_package_may_be_there():
    assert skips.problem("test_kernels_can_load_without_crashing", PATTERN, set()) is None


def test_every_name_in_the_table_is_a_test():
    if (missing := fetch.what_is_missing()) is not None:
        pytest.skip(missing)
    from suite import ShardedSuite

    tests = [name for name in dir(ShardedSuite) if name.startswith("test_")]
    unknown = [name for skip in skips.SKIPS for name in skip.tests if not any(fnmatchcase(t, name) for t in tests)]
    assert not unknown
