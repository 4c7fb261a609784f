"""Every kind of file: the same documents whatever they are packed in, and an error that says where it is."""

import gzip
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridlm.data import Corpus, PrepareConfig, Source, prepare, texts
from hybridlm.data.find import find_files, kind
from hybridlm.errors import UserError

zstd = pytest.importorskip("backports.zstd") if texts.sys.version_info < (3, 14) else texts._zstd()
TEXTS = ["one\nmore", "naïve — café", "three"]
ROWS = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS).encode()


def corpus(path, **options):
    return list(Corpus([Source(path=str(path), **options)]))


def write(path, data):
    path.write_bytes(data)
    return path


def parquet(path, column, name="body", **options):
    pq.write_table(pa.table({"id": list(range(len(column))), name: column}), path, **options)
    return path


def test_json_lines_plain_and_packed(tmp_path):
    assert corpus(write(tmp_path / "a.jsonl", ROWS), field="body") == TEXTS
    assert corpus(write(tmp_path / "a.jsonl.gz", gzip.compress(ROWS)), field="body") == TEXTS
    assert corpus(write(tmp_path / "a.NDJSON.ZST", zstd.compress(ROWS)), field="body") == TEXTS
    several = gzip.compress(ROWS) + gzip.compress(ROWS)  # as `cat a.gz b.gz` makes it
    assert corpus(write(tmp_path / "b.jsonl.gz", several), field="body") == TEXTS * 2
    assert corpus(write(tmp_path / "b.jsonl.zst", zstd.compress(ROWS) * 2), field="body") == TEXTS * 2


def test_text_plain_and_packed(tmp_path):
    data = b"one\n\ntwo\nthree\n"
    for path in (tmp_path / "a.txt", tmp_path / "a.txt.gz", tmp_path / "a.md.zst"):
        packed = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)(data)
        assert corpus(write(path, packed)) == [data.decode()]
        assert corpus(path, documents="line") == ["one", "two", "three"]


def test_a_window_larger_than_usual_is_read(tmp_path):
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    packed = packer.compress(b"packed with ") + packer.flush(packer.FLUSH_BLOCK) + packer.compress(b"--long")
    path = write(tmp_path / "a.txt.zst", packed + packer.flush())
    with pytest.raises(zstd.ZstdError), zstd.open(path) as file:
        file.read()
    assert corpus(path) == ["packed with --long"]


TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TYPES)
def test_parquet(tmp_path, kind):
    found = [f"{text} {i}" for i in range(300) for text in TEXTS]
    path = tmp_path / "a.parquet"
    column = pa.array(found, pa.string()).cast(kind)
    pq.write_table(pa.table({"id": list(range(len(found))), "body": column}), path, row_group_size=100)
    assert corpus(path, field="body") == found


def test_parquet_errors_name_file_and_row(tmp_path):
    path = parquet(tmp_path / "a.parquet", ["x", None])
    with pytest.raises(UserError, match=r"a\.parquet, row 1: column 'body' is null"):
        corpus(path, field="body")
    with pytest.raises(UserError, match=r"no column 'text'; the file has \['id', 'body'\]"):
        corpus(path)
    with pytest.raises(UserError, match="column 'id' is of type int64, no text"):
        corpus(path, field="id")
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    with pytest.raises(UserError, match=r"b\.parquet: behind row 0 it cannot be read"):
        corpus(parquet(tmp_path / "b.parquet", column), field="body")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a\.parquet: it cannot be read as Parquet"):
        corpus(path, field="body")


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd.compress)])
def test_packed_files_that_are_cut_off_or_damaged(tmp_path, name, pack):
    packed = pack(os.urandom(2000).hex().encode() * 20)
    for data in (packed[:-5], packed[:3], packed + b"junk", b"no such thing", packed[:30] + b"\xff" * 30 + packed[60:]):
        write(tmp_path / name, data)
        with pytest.raises(UserError, match=rf"{name}(: behind byte \d+ of its content it is damaged|:1: not a JSON)"):
            corpus(tmp_path / name)
    write(tmp_path / name, b"")
    with pytest.raises(UserError, match="the file is empty"):
        corpus(tmp_path / name)
    write(tmp_path / name, pack(b""))
    with pytest.raises(UserError, match="the file is empty"):
        corpus(tmp_path / name)


def test_without_zstd_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt.zst", zstd.compress(b"x"))
    monkeypatch.setattr(texts, "_zstd", lambda: None)
    with pytest.raises(UserError, match=r"backports\.zstd.*pip install .*\[zstd\]"):
        corpus(path)


def test_json_values_that_python_refuses(tmp_path):
    for line, says in ((b"[" * 100_000, "nested too deeply"), (b"1" * 5000, "too many digits"), (b"nul", "column 1")):
        with pytest.raises(UserError, match=rf"a\.jsonl:2: not a JSON value \(.*{says}"):
            corpus(write(tmp_path / "a.jsonl", b'{"text": "x"}\n' + line))
    keys = json.dumps({f"key {i}": 1 for i in range(10_000)}).encode()
    with pytest.raises(UserError) as error:
        corpus(write(tmp_path / "a.jsonl", keys))
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_folder_holds_all_kinds_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"text": "b"}'))
    write(tmp_path / "a.txt.zst", zstd.compress(b"a"))
    parquet(tmp_path / "c.parquet", ["c"], "text")
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "e.text", b"e")
    write(tmp_path / "x.png", b"\0")
    write(tmp_path / "x.parquet.gz", b"\0")  # Parquet is packed inside
    assert corpus(tmp_path) == ["a", "b", "c", "e"]
    assert [kind(path) for path in find_files(str(tmp_path))] == [".txt", ".jsonl", ".parquet", ".text"]


def test_what_cannot_be_looked_at_is_no_smaller_corpus(tmp_path):
    write(tmp_path / "a.txt", b"a")
    (tmp_path / "b.txt").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(UserError, match=r"b\.txt is a link to 'nowhere', which is not there"):
            corpus(path)
    with pytest.raises(UserError, match="cannot be looked at"):
        corpus(tmp_path / ("x" * 5000))
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").symlink_to("b.txt")
    with pytest.raises(UserError, match=r"b\.txt"):
        corpus(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path):
    path = write(tmp_path / "a.txt", b"a")
    path.chmod(0)
    with pytest.raises(UserError, match=r"a\.txt: it cannot be read \(Permission denied\)"):
        corpus(path)
    path.chmod(0o600)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match=r"closed'.*Permission denied"):
        corpus(tmp_path)


def test_data_sets_stream_their_one_column(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "train.parquet", TEXTS)
    for streaming in (True, False):
        source = Source(dataset=str(folder), field="body", streaming=streaming)
        assert list(Corpus([source])) == TEXTS
    with pytest.raises(UserError, match=r"no field 'text'; it has \['id', 'body'\]"):
        list(Corpus([Source(dataset=str(folder))]))
    with pytest.raises(UserError, match="cannot be loaded"):
        list(Corpus([Source(dataset=str(folder), field="body", split="nosuch")]))
    with pytest.raises(UserError, match=r"dataset 'nosuch/nosuch' .* cannot be loaded"):
        list(Corpus([Source(dataset="nosuch/nosuch")]))
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"dataset .* cannot be (loaded|read)"):
        list(Corpus([Source(dataset=str(folder), field="body")]))


def test_a_saved_set_with_a_damaged_file(tmp_path):
    datasets.Dataset.from_dict({"text": ["x"] * 100}).with_format("numpy").save_to_disk(tmp_path / "set")
    assert list(Corpus([Source(dataset=str(tmp_path / "set"))])) == ["x"] * 100
    arrow = next((tmp_path / "set").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:50])
    with pytest.raises(UserError, match=r"dataset .* cannot be (loaded|read)"):
        list(Corpus([Source(dataset=str(tmp_path / "set"))]))


@pytest.mark.parametrize(("count", "more"), [(2, ""), (10, ""), (12, " and 2 more")])
def test_all_empty_files_are_named_at_once(tmp_path, monkeypatch, count, more):
    """Before any is read, and with the paths that are not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    write(tmp_path / "books" / "full.txt", b"text")
    names = [f"books/{i:02}.txt" for i in range(count - 1)] + ["one.jsonl"]
    for name in names:
        write(tmp_path / name, b"")
    sources = [{"path": "one.jsonl"}, {"path": "books"}, {"path": "nowhere.txt"}]
    named = ", ".join(["one.jsonl", *names[:-1]][:10])
    with pytest.raises(UserError) as caught:
        prepare(PrepareConfig(sources=sources, output="out"), lambda _: None)
    missing, empty = str(caught.value).splitlines()
    assert missing.startswith("sources: 'nowhere.txt': there is no such file")
    assert empty == f"{named}{more}: these files are empty. Remove them from the sources, or fill them."
