"""Sources with weights: how often each is read, in an order that (seed, epoch) decides, and what a resumed run sees."""

import json
from collections import Counter
from fractions import Fraction
from math import lcm

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_shards import Tokens

from hybridlm.data import PrepareConfig, TokenShards, Windows, prepare
from hybridlm.data.mixture import epoch_items, epoch_tokens
from hybridlm.data.sources import Source
from hybridlm.errors import UserError

WEIGHTS = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0]


@st.composite
def mixtures(draw):
    """Documents of one to three sources, each with tokens of its own, and the sources' weights."""
    documents, sources = [], []
    count = draw(st.integers(1, 3))
    for source in range(count):
        for number in range(draw(st.integers(1, 5))):
            size = draw(st.integers(1, 9))
            first = 2 + 1000 * source + 100 * number
            documents.append(list(range(first, first + size)))
            sources.append(source)
    weights = draw(st.lists(st.sampled_from(WEIGHTS), min_size=count, max_size=count))
    sizes = Counter()
    for ids, source in zip(documents, sources, strict=True):
        sizes[source] += len(ids) + 1
    assume(any(round(weight * sizes[source]) for source, weight in enumerate(weights)))  # else there is no epoch
    return documents, sources, weights


def targets(windows, epoch):
    found = Counter()
    for i in range(windows.per_epoch):
        labels = windows.sample(epoch * windows.per_epoch + i)["shift_labels"]
        found.update(labels[labels != -100].tolist())
    return found


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures(), length=st.integers(1, 9), seed=st.integers(0, 3), end=st.sampled_from([0, 1]))
def test_every_token_is_a_target_as_often_as_its_weight_says(mixture, length, seed, end):
    documents, sources, weights = mixture
    shards = Tokens(documents, end, weights, sources)
    windows = Windows(shards, length, seed=seed)
    edges, lengths = shards.source_edges, shards.lengths
    sizes = [int(lengths[edges[s] : edges[s + 1]].sum()) for s in range(len(weights))]
    shares = [round(weight * size) for weight, size in zip(weights, sizes, strict=True)]
    assert windows.per_epoch == -(-sum(shares) // length)
    # After so many epochs every source has been read a whole number of times.
    epochs = lcm(*(Fraction(share, size).denominator for share, size in zip(shares, sizes, strict=True)))
    if epochs > 40:
        return
    found = sum((targets(windows, epoch) for epoch in range(epochs)), Counter())
    wanted = Counter()
    for ids, source in zip(documents, sources, strict=True):
        wanted.update(dict.fromkeys([*ids, end], epochs * shares[source] // sizes[source]) if shares[source] else {})
    ends = sum(epochs * shares[s] // sizes[s] for s in sources)
    wanted[end] = ends
    assert found == +wanted


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures(), length=st.integers(1, 9), seed=st.integers(0, 3), end=st.sampled_from([0, 1]))
def test_windows_stay_inside_documents(mixture, length, seed, end):
    """Each target is what follows its input in the document, also at the place where an epoch cuts it."""
    documents, sources, weights = mixture
    windows = Windows(Tokens(documents, end, weights, sources), length, seed=seed)
    follows = {(a, b) for ids in documents for a, b in zip([0, *ids], [*ids, end], strict=True)}
    for i in range(3 * windows.per_epoch):
        sample = windows.sample(i)
        for token, target in zip(sample["input_ids"], sample["shift_labels"], strict=True):
            assert target == -100 or (token, target) in follows


def test_an_epoch_has_the_same_number_of_tokens_and_halves_differ():
    documents = [[10 + i] * (i % 7 + 1) for i in range(40)]
    shards = Tokens(documents, 0, (0.5, 2), [0] * 20 + [1] * 20)
    total = epoch_tokens(shards.lengths, shards.source_edges, shards.weights)
    assert total == round(0.5 * shards.lengths[:20].sum()) + 2 * shards.lengths[20:].sum()
    draws = [epoch_items(shards.lengths, shards.source_edges, shards.weights, 7, epoch) for epoch in range(4)]
    assert {int(items.lengths.sum()) for items in draws} == {total}
    halves = [set(items.documents[items.documents < 20].tolist()) for items in draws]
    assert len(halves[0] & halves[1]) <= 1  # the one that is cut
    assert halves[0] | halves[1] == set(range(20))
    assert halves[0] != halves[2]  # the next pass is in another order
    other = epoch_items(shards.lengths, shards.source_edges, shards.weights, 8, 0)
    assert set(other.documents[other.documents < 20].tolist()) != halves[0]
    late = epoch_items(shards.lengths, shards.source_edges, shards.weights, 7, 3)
    assert all(np.array_equal(x, y) for x, y in zip(late, draws[3], strict=True))  # whatever was asked for before


def test_validation_reads_every_document_once():
    documents = [[10 + i] * 3 for i in range(8)]
    plain = Windows(Tokens(documents), 5, shuffle=False)
    weighted = Windows(Tokens(documents, 0, (0.25, 3), [0] * 4 + [1] * 4), 5, shuffle=False)
    assert weighted.per_epoch == plain.per_epoch
    for i in range(plain.per_epoch):
        assert np.array_equal(weighted.sample(i)["input_ids"], plain.sample(i)["input_ids"])


def test_weights_that_leave_nothing():
    with pytest.raises(UserError, match=r"weights \[0.0\] leave no token"):
        Windows(Tokens([[2, 3]], 0, (0.0,)), 4)


def prepared(tmp_path, weights, log=lambda _: None, **options):
    for name in "ab":
        lines = [f"{name} {i}: the sea was calm" for i in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    sources = [
        {"path": str(tmp_path / f"{name}.txt"), "documents": "line", "weight": weight}
        for name, weight in zip("ab", weights, strict=True)
    ]
    return prepare(PrepareConfig(sources=sources, output=str(tmp_path / "out"), vocab_size=280, **options), log)


def test_other_weights_need_no_new_tokens_and_are_other_data_to_a_run(tmp_path):
    folder = prepared(tmp_path, [1, 1], validation={"share": 0.2}, shard_tokens=200)
    plain = TokenShards(folder, "train")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert plain.fingerprint == manifest["fingerprint"]
    stamp = (folder / "train-00000.bin").stat().st_mtime_ns
    log = []
    assert prepared(tmp_path, [2, 0.5], log.append, validation={"share": 0.2}, shard_tokens=200) == folder
    assert "weights were [1.0, 1.0] and are now [2.0, 0.5]" in "\n".join(log)
    weighted = TokenShards(folder, "train")
    assert (folder / "train-00000.bin").stat().st_mtime_ns == stamp
    assert weighted.weights == [2, 0.5]
    assert weighted.fingerprint != plain.fingerprint
    for split in ("train", "validation"):
        shards = TokenShards(folder, split)
        texts = [shards.tokenizer.decode(shards.document(i)[1:3]) for i in range(shards.n_documents)]
        edges = shards.source_edges
        assert edges[0] == 0
        assert edges[-1] == shards.n_documents
        assert all(text.startswith("a") for text in texts[: edges[1]])
        assert all(text.startswith("b") for text in texts[edges[1] :])
    prepared(tmp_path, [1, 1], validation={"share": 0.2}, shard_tokens=200)
    assert TokenShards(folder, "train").fingerprint == plain.fingerprint


def test_licences_are_said_anew_and_tokenise_nothing(tmp_path):
    """Also of a folder that was made before they were asked for."""

    def kept(licences, **how):
        sources = [
            {"path": str(tmp_path / f"{name}.txt"), "documents": "line", "license": licence}
            for name, licence in zip("ab", licences, strict=True)
        ]
        prepare(PrepareConfig(sources=sources, output=str(tmp_path / "out"), vocab_size=280), lambda _: None, **how)
        return json.loads((tmp_path / "out" / "manifest.json").read_text())

    folder = prepared(tmp_path, [1, 1])
    stamp = (folder / "train-00000.bin").stat().st_mtime_ns
    before = json.loads((folder / "manifest.json").read_text())
    assert [(entry["kind"], entry["license"]) for entry in before["sources"]] == [("path", None)] * 2
    old = before | {
        "sources": [{k: v for k, v in e.items() if k not in ("kind", "license")} for e in before["sources"]]
    }
    (folder / "manifest.json").write_text(json.dumps(old))
    assert kept(["CC0-1.0", None], set_weights=False) == old
    after = kept(["CC0-1.0", None])
    assert [entry["license"] for entry in after["sources"]] == ["CC0-1.0", None]
    assert after["fingerprint"] == before["fingerprint"]
    assert (folder / "train-00000.bin").stat().st_mtime_ns == stamp


def test_the_novels_are_in_the_public_domain():
    assert Source(builtin="austen").origin() == {"kind": "builtin", "license": "public domain"}
    assert Source(builtin="austen", license="mine").origin()["license"] == "mine"
