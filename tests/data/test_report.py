"""Duplicates, the report, the tokenizer's sample, and what is shown on the way."""

import io
import json
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation import config, write_corpus
from rich.console import Console

from hybridlm.data import PrepareConfig, TokenShards, Windows, prepare
from hybridlm.data.progress import PrepareProgress
from hybridlm.data.sample import Sample
from hybridlm.data.scan import _repeated
from hybridlm.errors import UserError


def quiet(_):
    pass


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(0, 2))
def test_what_came_before_is_found(values, shift):
    """Hashes that agree in their first, or their second half only are no duplicates."""
    digests = b"".join((v % 7).to_bytes(8, "little") + (v // 7 << 60 >> shift).to_bytes(8, "big") for v in values)
    seen, wanted = set(), []
    for at in range(0, len(digests), 16):
        wanted.append(digests[at : at + 16] in seen)
        seen.add(digests[at : at + 16])
    assert _repeated(bytearray(digests)).tolist() == wanted


def test_duplicates_are_dropped_unless_they_are_wanted(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\none\n\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three\ntwo\ntwo", encoding="utf-8")
    sources = [{"path": str(tmp_path / name), "documents": "line"} for name in ("a.txt", "b.txt")]
    texts = {}
    for deduplicate in (True, False):
        log = []
        settings = {"output": str(tmp_path / str(deduplicate)), "vocab_size": 257, "validation": {"share": 0}}
        folder = prepare(PrepareConfig(sources=sources, deduplicate=deduplicate, **settings), log.append)
        shards = TokenShards(folder, "train")
        texts[deduplicate] = [shards.tokenizer.decode(shards.document(i)[1:]) for i in range(shards.n_documents)]
        report = json.loads((folder / "manifest.json").read_text())["sources"]
        assert [entry["duplicates"] for entry in report] == ([1, 2] if deduplicate else [0, 0])
        assert [entry["empty"] for entry in report] == [1, 0]
        assert [entry["documents"] for entry in report] == [3, 3]
        assert ("3 duplicates dropped" in "\n".join(log)) == deduplicate
    assert texts[True] == ["one", "two", "three"]
    assert texts[False] == ["one", "two", "one", "three", "two", "two"]


def test_the_report_adds_up(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    log = []
    folder = prepare(config(), log.append)
    lines = json.loads((folder / "manifest.json").read_text())["sources"]
    assert [entry["source"] for entry in lines] == ["lines.jsonl.gz", "book.txt"]
    assert (lines[0]["documents"], lines[0]["duplicates"], lines[0]["empty"]) == (401, 1, 1)
    for entry in lines:
        assert (
            entry["train"]["documents"] + entry["validation"]["documents"] + entry["duplicates"] == entry["documents"]
        )
    for split in ("train", "validation"):
        shards = TokenShards(folder, split)
        for number, entry in enumerate(lines):
            begin, end = shards.source_edges[number : number + 2]
            assert entry[split]["documents"] == end - begin
            assert entry[split]["tokens"] == shards.lengths[begin:end].sum()
            decoded = [shards.tokenizer.decode(shards.document(i)[1:]) for i in range(begin, end)]
            assert entry[split]["bytes"] == len("".join(decoded).encode())
        assert sum(entry[split]["bytes"] for entry in lines) == shards.n_bytes
        total = f"{shards.n_documents:,} documents{' held out' * (split == 'validation')}, {shards.n_tokens:,} tokens"
        assert any(line.startswith(f"  {split}: {total}") and "bytes per token" in line for line in log)
    assert any("book.txt (weight 2): 200 documents" in line for line in log)


def test_bytes_are_those_of_the_windows_over_several_shards(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    shards = TokenShards(prepare(config(shard_tokens=300), quiet), "validation")
    assert len(list((tmp_path / "out").glob("validation-*.bin"))) > 3
    windows = Windows(shards, 16, shuffle=False, text_only=True)
    tokens, total = shards.tokenizer.convert_ids_to_tokens, 0
    for k in range(1, windows.per_epoch + 1):
        labels = windows.sample(k - 1)["shift_labels"]
        total += sum(len(token) for token in tokens(labels[labels != -100].tolist()))
        assert windows.n_bytes(k) == total
    assert total == shards.n_bytes


def drawn(limit, texts, numbers=None, dropped=()):
    """The texts of a sample to which documents were added in the order of their `numbers`."""
    with closing(Sample(limit)) as sample:
        for number in numbers or range(len(texts)):
            sample.add(number, number.to_bytes(16, "little"), texts[number])
        return list(sample.texts(np.array([number in dropped for number in range(len(texts))])))


def test_a_sample_that_fits_is_the_text_itself():
    texts = ["é" * 40_000, "short", "x" * 16_384, "y" * 16_385, ""]
    assert drawn(10**6, texts) == texts[:-1]


def test_a_sample_is_even_and_does_not_depend_on_the_order():
    texts = [f"{i:04} " + "é" * 100 for i in range(4000)]
    found = drawn(200_000, texts)
    assert 50_000 < sum(len(text.encode()) for text in found) <= 200_000
    half = sum(int(text[:4]) < 2000 for text in found)
    assert 0.4 * len(found) < half < 0.6 * len(found)
    assert sorted(drawn(200_000, texts, list(reversed(range(4000))))) == found
    long = drawn(200_000, ["é" * 500_000])  # pieces of one document
    assert 50_000 < sum(len(text.encode()) for text in long) <= 200_000
    assert set("".join(long)) == {"é"}


def test_a_sample_leaves_out_what_was_dropped():
    assert drawn(10**6, ["a" * 20_000, "b" * 20_000, "c"], dropped=[1]) == ["a" * 20_000, "c"]


def test_a_temporary_folder_without_room(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115
    message = r"temporary folder .* \(No space left on device\)\. Make room, set TMPDIR"
    with closing(Sample(10**6)) as sample, pytest.raises(UserError, match=message):
        sample.add(0, bytes(16), "x" * 10**5)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_lines_where_there_is_no_terminal():
    log, clock = [], Clock()
    with PrepareProgress(log.append, console=Console(file=io.StringIO()), every=30, clock=clock) as progress:
        progress.phase("reading")
        for _ in range(100):
            clock.now += 1
            progress.advance(2_000_000)
        progress.phase("tokenising", total=600_000_000)
        for _ in range(100):
            clock.now += 1
            progress.advance(1_000_000)
    assert log[:3] == [f"reading: {30 * i} documents, {60 * i:.1f} MB, 2.00 MB/s" for i in (1, 2, 3)]
    assert log[3] == "tokenising: 30 documents, 30.0 of 600.0 MB, 1.00 MB/s, ETA 0:09:30"
    assert len(log) == 6


def test_a_bar_on_a_terminal():
    log, clock, screen = [], Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with PrepareProgress(log.append, console=console, clock=clock) as progress:
        progress.phase("tokenising", total=10_000_000)
        for _ in range(5):
            clock.now += 1
            progress.advance(1_000_000)
    assert log == []
    assert "tokenising" in screen.getvalue()
    assert "5 documents" in screen.getvalue()
    assert "5.0/10.0 MB" in screen.getvalue()


@pytest.mark.parametrize("weights", ["1", "1,2,3", "1,x"])
def test_weights_that_do_not_fit(tmp_path, monkeypatch, capsys, weights):
    from hybridlm.cli import main

    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "lines.jsonl.gz", "book.txt", "--out", "out", "--weights", weights]) == 2
    assert f"--weights {weights}: give" in capsys.readouterr().err


def test_the_command_has_options_for_it_all(tmp_path, monkeypatch, capsys):
    from hybridlm.cli import main

    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--weights", "0.5,2", "--workers", "1", "--keep-duplicates", "--documents", "paragraph", "--out", "out"]
    assert main(["prepare", "lines.jsonl.gz", "book.txt", "--vocab-size", "280", *options]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["weights"] == [0.5, 2]
    assert manifest["made_of"]["deduplicate"] is False
    assert "weight 0.5" in capsys.readouterr().out
