"""The bigram baseline: a proper distribution, right on counts made by hand, as good as known on the two novels."""

import numpy as np
import pytest

from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.data.shards import TokenShards
from hybridlm.errors import UserError
from hybridlm.evaluation.bigram import Bigram, Counts, bigram_baseline


def pairs(n=4000, vocab_size=20, seed=0):
    """A chain in which each token has a likely successor; tokens 18 and 19 never occur."""
    random = np.random.default_rng(seed)
    ids = np.zeros(n, dtype=np.int64)
    for i in range(1, n):
        ids[i] = (ids[i - 1] * 7 + 3) % 18 if random.random() < 0.8 else random.integers(18)
    return ids[:-1], ids[1:]


def test_probabilities_sum_to_one_for_every_history():
    model = Bigram.fit(*pairs(), vocab_size=20)
    for history in range(20):
        nats = model.nats(np.full(20, history), np.arange(20))
        assert np.exp(-nats).sum() == pytest.approx(1, abs=1e-12)
        assert np.isfinite(nats).all()


def test_counts_are_those_made_by_hand():
    history, word = np.array([0, 1, 0, 1, 0]), np.array([1, 0, 1, 2, 2])
    parts = Counts.of(history, word, 4).parts(np.array([0, 0, 1, 3]), np.array([1, 3, 2, 0]))
    assert parts[:, 0] == pytest.approx([2 / 3, 0, 1 / 2, 0])
    assert parts[:, 1] == pytest.approx([2 / 5, 0, 2 / 5, 1 / 5])
    assert parts[:, 2] == pytest.approx([1 / 4] * 4)


def test_it_beats_each_of_its_parts_on_text_it_has_not_seen():
    model = Bigram.fit(*pairs(), vocab_size=20)
    history, word = pairs(seed=1)
    nats = model.nats(history, word).mean()
    with np.errstate(divide="ignore"):
        parts = -np.log(model.counts.parts(history, word)).mean(axis=0)
    assert nats < parts.min()
    entropy = -(0.8 + 0.2 / 18) * np.log(0.8 + 0.2 / 18) - 17 * (0.2 / 18) * np.log(0.2 / 18)
    assert entropy < nats < entropy + 0.05


def test_often_seen_histories_trust_the_bigram_more():
    random = np.random.default_rng(0)
    rare, often = random.integers(4, 4000, 3000), random.integers(0, 4, 30000)
    ids = np.concatenate([rare, often])
    random.shuffle(ids)
    history, word = ids, (ids * 3 + 1) % 4
    model = Bigram.fit(history, word, vocab_size=4000)
    bucket = model.counts.bucket(np.array([0, int(rare[0])]))
    assert bucket[0] > bucket[1]
    assert model.weights[bucket[0], 0] > model.weights[bucket[1], 0]


def test_what_was_never_seen_still_has_a_probability():
    """Token 3 never occurs, neither where the counts are made nor where the weights are fitted."""
    ids = np.tile([0, 1, 2, 1], 500)
    model = Bigram.fit(ids[:-1], ids[1:], vocab_size=4)
    assert model.nats(np.array([0, 1, 2, 3]), np.array([3, 3, 3, 3])).max() < 15


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="too few"):
        Bigram.fit(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64), vocab_size=3)


def test_the_two_novels_have_the_figure_that_the_readme_gives(tmp_path):
    """At 2,048 tokens, trained on the first nine tenths of each novel and measured on the last."""
    config = PrepareConfig(
        sources=[{"builtin": "austen"}],
        output=str(tmp_path / "data"),
        vocab_size=2048,
        validation={"by": "position", "share": 0.1},
    )
    data = prepare(config, log=lambda _: None)
    train, validation = TokenShards(data, "train"), TokenShards(data, "validation")
    found = bigram_baseline(train, validation)
    assert found["bits_per_byte"] == pytest.approx(1.938, abs=0.003)
    assert found["n_bytes"] == validation.n_bytes
    assert found["n_tokens"] == validation.n_tokens - validation.n_documents  # all but the start symbols
