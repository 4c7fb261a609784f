"""transformers' own model tests, on five kinds of stacks. Which of them are skipped, and why, is in skips.py."""

import unittest

import fetch
import pytest

if (missing := fetch.what_is_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

from suite import HybridLMSuite, ShardedSuite


class RecurrentTest(HybridLMSuite, unittest.TestCase):
    pattern = "rglru lru"


class MemoryTest(HybridLMSuite, unittest.TestCase):
    pattern = "bmru cmru"


class ParallelTest(ShardedSuite, unittest.TestCase):
    pattern = "(rglru+bmru)*2"


class AttentionTest(HybridLMSuite, unittest.TestCase):
    pattern = "rglru+bmru attention"


class Mamba2Test(ShardedSuite, unittest.TestCase):
    pattern = "mamba2 sliding_attention"
