"""From files to a data folder: what is read, what is refused, and that nothing is left half-written."""

import json
import os
import shutil
import sys

import datasets
import numpy as np
import pytest

from hybridlm.data import Corpus, PrepareConfig, Source, TokenShards, ValidationConfig, prepare
from hybridlm.data.split import split_document
from hybridlm.data.tokenizer import train_tokenizer
from hybridlm.errors import UserError

LINES = [f"line {i}: the sea was calm and the ship number {i * 7919 % 1000} went past" for i in range(200)]


def write(path, text, mode="w"):
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def corpus(path, **options):
    return list(Corpus([Source(path=str(path), **options)]))


def config(tmp_path, text=None, **options):
    source = write(tmp_path / "text.txt", text or "\n".join(LINES))
    options = {
        "output": str(tmp_path / "out"),
        "vocab_size": 300,
        "validation": {"by": "position", "share": 0.1},
    } | options
    return PrepareConfig(sources=[{"path": source}], **options)


def quiet(_):
    pass


def test_documents_of_text_files(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "\ufeffone\r\ntwo\n\n\nthree\n")
    assert corpus(path) == ["one\ntwo\n\n\nthree\n"]
    assert corpus(path, documents="line") == ["one", "two", "three"]
    assert [text.strip() for text in corpus(path, documents="paragraph")] == ["one\ntwo", "three"]
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "b.txt", "four")
    assert corpus(tmp_path)[1] == "four"
    assert corpus(tmp_path / "*.txt") == ["one\ntwo\n\n\nthree\n"]


def test_json_lines_and_data_sets(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "one"}\n\n{"body": "  "}\n{"body": "two"}\n')
    found = Corpus([Source(path=path, field="body")])
    assert list(found) == ["one", "two"]
    assert found.empty == 1
    datasets.Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(tmp_path / "set")
    assert list(Corpus([Source(dataset=str(tmp_path / "set"))])) == ["x", "y"]
    datasets.Dataset.from_dict({"text": ["x", None]}).save_to_disk(tmp_path / "holes")
    with pytest.raises(UserError, match="row 1: field 'text' is None"):
        list(Corpus([Source(dataset=str(tmp_path / "holes"))]))
    with pytest.raises(UserError, match="has no splits"):
        list(Corpus([Source(dataset=str(tmp_path / "set"), split="nosuch")]))
    with pytest.raises(UserError, match="no field 'body'"):
        list(Corpus([Source(dataset=str(tmp_path / "set"), field="body")]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "the file is empty"),
        ("a.txt", b"ab\0c", "byte 2 is 0"),
        ("a.txt", b"ok\nab\xff", "byte 5 is not UTF-8"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a.jsonl:2: not a JSON value"),
        ("a.jsonl", '{"body": "x"}', r"a.jsonl:1: no text in field 'text'"),
        ("a.txt", " \n \n", "hold no document"),
        ("a.jsonl", '{"text": "\\ud800 x"}', "half a surrogate pair"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        prepare(PrepareConfig(sources=[{"path": path}], output=str(tmp_path / "out")), quiet)
    assert not list(tmp_path.glob("*out*"))


def test_paths_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (("missing.txt", "no such file"), ("*.txt", "no file matches"), ("empty", "holds no")):
        with pytest.raises(UserError, match=message):
            corpus(tmp_path / path)
    with pytest.raises(ValueError, match="exactly one of"):
        Source()
    misplaced = (
        {"path": "x", "split": "a"},
        {"dataset": "x", "documents": "line"},
        {"builtin": "austen", "field": "a"},
    )
    for options in misplaced:
        with pytest.raises(ValueError, match="belong"):
            Source(**options)
    with pytest.raises(ValueError, match="only one of"):
        PrepareConfig(sources=[{"builtin": "austen"}], output="x", vocab_size=300, tokenizer="y")


def test_an_output_below_a_file_is_refused_before_a_source_is_read(tmp_path):
    write(tmp_path / "file", "x")
    options = {"sources": [{"path": str(tmp_path / "missing.txt")}], "output": str(tmp_path / "file" / "new" / "out")}
    with pytest.raises(UserError, match=r"it cannot be written \(.*/file is a file\)"):
        prepare(PrepareConfig(**options), quiet)


def test_a_folder_holds_every_token(tmp_path):
    log = []
    folder = prepare(config(tmp_path, documents_text(), validation={"by": "position", "share": 0.1}), log.append)
    train, held_out = TokenShards(folder, "train"), TokenShards(folder, "validation")
    text = train.tokenizer.decode(train.document(0), skip_special_tokens=True)
    rest = train.tokenizer.decode(held_out.document(0), skip_special_tokens=True)
    assert text + rest == documents_text()
    assert rest.startswith("line")  # cut behind a line
    assert train.n_bytes + held_out.n_bytes == len(documents_text().encode())
    assert any("bytes per token" in line for line in log)
    train.verify()


def documents_text():
    return "\n".join(LINES)


def test_small_shards_hold_the_same_documents(tmp_path):
    source = write(tmp_path / "l.txt", "\n".join(LINES))
    folders = []
    for name, size in (("one", 10**6), ("many", 100)):
        folders.append(
            prepare(
                PrepareConfig(
                    sources=[{"path": source, "documents": "line"}], output=str(tmp_path / name), vocab_size=300,
                    shard_tokens=size,
                    validation={"by": "document", "share": 0.2},
                ),
                quiet,
            )
        )  # fmt: skip
    one, many = (TokenShards(folder, "train") for folder in folders)
    assert len(list(folders[1].glob("train-*.bin"))) > 10
    assert one.n_documents == many.n_documents
    for i in range(one.n_documents):
        assert np.array_equal(one.document(i), many.document(i))
        assert one.document_bytes(i) == many.document_bytes(i)
    assert one.fingerprint != many.fingerprint


def test_the_split_by_document_is_drawn_by_the_seed():
    rule = ValidationConfig(by="document", share=0.3)
    held_out = [bool(split_document(line, rule, seed=1)[1]) for line in LINES]
    assert 30 < sum(held_out) < 90
    assert held_out != [bool(split_document(line, rule, seed=2)[1]) for line in LINES]


def test_added_documents_move_none(tmp_path):
    def held_out(lines, name):
        source = write(tmp_path / f"{name}.txt", "\n".join(lines))
        config = PrepareConfig(
            sources=[{"path": source, "documents": "line"}],
            output=str(tmp_path / name),
            tokenizer=tokenizer,
            validation={"by": "document", "share": 0.3},
        )
        shards = TokenShards(prepare(config, quiet), "validation")
        return [shards.tokenizer.decode(shards.document(i)[1:]) for i in range(shards.n_documents)]

    tokenizer = str(prepare(config(tmp_path), quiet) / "tokenizer")
    before, after = held_out(LINES[:100], "before"), held_out([*LINES[150:], *LINES[:100]], "after")
    assert [line for line in after if line in set(LINES[:100])] == before
    assert len(after) > len(before) > 10


@pytest.mark.parametrize("text", ["é" * 50, "aé" * 30, "no-break", "x", "a b\n\nc d" * 40])
def test_the_split_by_position_loses_nothing(text):
    train, held_out = split_document(text, ValidationConfig(by="position", share=0.25), 0)
    assert train + held_out == text
    # A quarter more at most for a boundary, and what completes a character.
    assert 0.25 * len(text.encode()) <= len(held_out.encode()) <= 0.25 * 1.25 * len(text.encode()) + 4


def test_the_split_by_position_does_not_reach_for_a_boundary_too_far():
    text = "Title\n\n" + "word " * 780
    _, held_out = split_document(text, ValidationConfig(by="position", share=0.05), 0)
    assert 195 <= len(held_out) <= 245
    assert split_document("a" * 50, ValidationConfig(by="position", share=1e-17), 0) == ("a" * 50, "")


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"validation\.by: position"):
        prepare(config(tmp_path, "one short text", validation={"by": "document", "share": 0.01}), quiet)
    assert not list(tmp_path.glob("*out*"))


def test_no_validation(tmp_path):
    folder = prepare(config(tmp_path, validation={"share": 0.0}), quiet)
    assert TokenShards(folder, "validation").n_tokens == 0


def test_a_second_run_keeps_refuses_or_replaces(tmp_path):
    folder = prepare(config(tmp_path), quiet)
    stamp = os.stat(folder / "manifest.json").st_mtime_ns
    log = []
    prepare(config(tmp_path), log.append)
    assert "up to date" in log[0]
    assert os.stat(folder / "manifest.json").st_mtime_ns == stamp
    with pytest.raises(UserError, match="tokenizer differ"):
        prepare(config(tmp_path, vocab_size=310), quiet)
    assert TokenShards(folder, "train").vocab_size <= 300
    prepare(config(tmp_path, vocab_size=310, overwrite=True), quiet)
    assert json.loads((folder / "manifest.json").read_text())["made_of"]["tokenizer"] == "bpe-310"
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "diary.txt", "mine")
    with pytest.raises(UserError, match="is no data folder"):
        prepare(config(tmp_path, overwrite=True), quiet)
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hybridlm.data.prepare"], "_write_shards", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path), quiet)
    assert not list(tmp_path.glob("*out*"))


def test_a_failing_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    folder = prepare(config(tmp_path), quiet)
    before = (folder / "manifest.json").read_text()
    rename = os.rename

    def fail(source, target):
        if ".partial-" in str(source):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(config(tmp_path, vocab_size=310, overwrite=True), quiet)
    assert (folder / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".out.partial-999999999").mkdir()
    prepare(config(tmp_path), quiet)
    assert not list(tmp_path.glob(".out*"))


def test_an_existing_tokenizer_is_taken(tmp_path):
    first = prepare(config(tmp_path), quiet)
    again = prepare(
        config(tmp_path, output=str(tmp_path / "again"), vocab_size=None, tokenizer=str(first / "tokenizer")), quiet
    )
    assert np.array_equal(TokenShards(first, "train").document(0), TokenShards(again, "train").document(0))


def test_damage_is_named(tmp_path):
    folder = prepare(config(tmp_path), quiet)
    shard = folder / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"train-00000\.bin.*checksum"):
        TokenShards(folder, "train").verify()
    shard.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"bytes; .* are expected"):
        TokenShards(folder, "train")
    with pytest.raises(UserError, match="no such folder"):
        TokenShards(tmp_path / "missing", "train")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        TokenShards(tmp_path, "train")
    with pytest.raises(UserError, match="split='test'"):
        TokenShards(folder, "test")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        TokenShards(folder, "train")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("train-00000.bin", flipped),
        ("train-00000.docs.npy", flipped),
        ("validation-00000.bytes.npy", cut),
        ("manifest.json", cut),
        ("tokenizer/tokenizer.json", cut),
        ("tokenizer/tokenizer.json", lambda path: path.write_text(path.read_text().replace('"BPE"', '"BPX"'))),
        ("tokenizer/tokenizer.json", os.remove),
        ("tokenizer", shutil.rmtree),
    ],
)
def test_overwrite_makes_a_damaged_folder_again(tmp_path, name, harm):
    """It is what every message about such a folder says to do."""
    folder = prepare(config(tmp_path), quiet)
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    harm(folder / name)
    prepare(config(tmp_path, overwrite=True), quiet)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == whole
    log = []
    prepare(config(tmp_path, overwrite=True), log.append)
    assert "up to date" in log[0]


def test_a_damaged_tokenizer_is_named_with_its_remedy(tmp_path, monkeypatch):
    """Also where the path could be a name on the Hub."""
    monkeypatch.chdir(tmp_path)
    folder = prepare(config(tmp_path, output="out"), quiet)
    bigger = train_tokenizer(LINES, vocab_size=310)
    harms = [
        (lambda: cut(folder / "tokenizer" / "tokenizer.json"), "delimiter"),
        (lambda: bigger.save_pretrained(folder / "tokenizer"), "310 tokens; 300 are expected"),
        (lambda: shutil.rmtree(folder / "tokenizer"), "no such folder"),
    ]
    for harm, reason in harms:
        harm()
        for attempt in (
            lambda: prepare(config(tmp_path, output="out"), quiet),
            lambda: TokenShards("out", "train").tokenizer,
        ):
            with pytest.raises(UserError, match=rf"^out/tokenizer: .*{reason}.*overwrite: true\.$") as caught:
                attempt()
            assert "Hub" not in str(caught.value)
