"""transformers' own model tests, on three kinds of stacks. Which of them are skipped, and why, is in skips.py."""

import unittest

import fetch
import pytest

if (missing := fetch.what_is_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

from suite import HybridLMSuite, ShardedSuite


class RecurrentTest(ShardedSuite, unittest.TestCase):
    pattern = "rglru+bmru mamba2"


class AttentionTest(HybridLMSuite, unittest.TestCase):
    pattern = "lru+cmru attention"


class SlidingTest(HybridLMSuite, unittest.TestCase):
    pattern = "bmru sliding_attention"
