"""What pytest needs to know for transformers' own tests; and that what they skip is what skips.py says."""

import os

import pytest
import skips

os.environ["TRANSFORMERS_TEST_DEVICE"] = "cpu"  # read when transformers.testing_utils is imported

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_fsdp_test",
    "is_training_test",
    "slow",
    "torch_compile_test",
)
SAID = pytest.StashKey[set[str]]()
FAILED = pytest.StashKey[bool]()


def pytest_configure(config):
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: set by transformers' own tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Collects why a test, or a subtest of it, was skipped; compares that with the table once all is known, at its
    teardown."""
    report = yield
    pattern = getattr(item.cls, "pattern", None)
    if pattern is not None:
        said = item.stash.setdefault(SAID, set())
        if report.skipped:
            said.add(report.longrepr[2].removeprefix("Skipped: "))
        item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
        if report.when == "teardown" and not item.stash[FAILED]:
            wrong = skips.problem(item.name, pattern, said)
            if wrong is not None:
                report.outcome, report.longrepr = "failed", wrong
    return report
