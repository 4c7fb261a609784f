"""Whatever lies in a file: a good folder, or a UserError that names the file; never half of one, and an older folder
stays as it was."""

import gzip
import io
import json
import os
import shutil
import tempfile
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from preparation import content

from hybridlm.data import PrepareConfig, TokenShards, prepare
from hybridlm.data.texts import _zstd
from hybridlm.errors import UserError

NAMES = ("a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst", "a.parquet")
NO_DOCUMENT = "sources: they hold no document"


def pack(name, data):
    return {".gz": gzip.compress, ".zst": _zstd().compress}.get(Path(name).suffix, bytes)(data)


def parquet(column):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": column}), file)
    return file.getvalue()


ODD = st.sampled_from(["", " ", "\n", "\r\n", "\0", "\ufeff", "\ud800", "\udfff", "é", "x" * 100_000, "\u2028", "a b"])
TEXTS = st.lists(ODD | st.text(max_size=20), max_size=6)
KEYS = st.text(max_size=3) | st.just("text")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ODD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("text"), inner, max_size=3)
    ),
    max_leaves=5,
)


def whole(draw, name):
    """Bytes of a file that is of the kind it says."""
    if name.endswith(".parquet"):
        kind = draw(st.sampled_from(["text", "numbers", "holes", "bytes", "lists"]))
        texts = [text for text in draw(TEXTS) if text.isprintable()]
        columns = {
            "text": pa.array(texts, pa.string()),
            "numbers": pa.array([1, 2]),
            "holes": pa.array(["x", None, "y"]),
            "bytes": pa.array([b"\xff", b"x"]),
            "lists": pa.array([["x"], ["y"]]),
        }
        return parquet(columns[kind])
    if ".jsonl" in name:
        rows = draw(st.lists(VALUES | st.builds(lambda value: {"text": value}, VALUES), max_size=5))
        return pack(name, "\n".join(json.dumps(row) for row in rows).encode())
    return pack(name, "".join(draw(TEXTS)).encode("utf-8", "surrogatepass"))


@st.composite
def files(draw):
    """A file name and bytes: anything, or of the right kind, cut off or with bytes changed."""
    name = draw(st.sampled_from(NAMES))
    how = draw(st.sampled_from(["anything", "packed", "whole", "cut", "changed"]))
    if how == "anything":
        return name, draw(st.binary(max_size=200))
    if how == "packed":
        return name, pack(name, draw(st.binary(max_size=200)))
    data = bytearray(whole(draw, name))
    if how == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    if how == "changed" and data:
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return name, bytes(data)


def config(path, documents="file"):
    return PrepareConfig(
        sources=[{"path": path, "documents": documents}],
        output="out",
        vocab_size=257,
        validation={"share": 0},
        overwrite=True,
    )


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """A data folder that is there before."""
    place = tmp_path_factory.mktemp("older")
    (place / "a.txt").write_text("the older text", encoding="utf-8")
    with chdir(place):
        return place / prepare(config("a.txt"), quiet)


def quiet(_):
    pass


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    file=files(),
    folder=st.booleans(),
    documents=st.sampled_from(["file", "line", "paragraph"]),
    there_before=st.booleans(),
)
@example(file=("a.jsonl", b'{"text": "\\ud800"}'), folder=False, documents="file", there_before=True)
@example(file=("a.jsonl", b"[" * 100_000), folder=False, documents="file", there_before=True)
@example(file=("a.txt.zst", b""), folder=True, documents="line", there_before=False)
def test_a_folder_or_an_error_that_names_the_file(older, file, folder, documents, there_before):
    name, data = file
    with tempfile.TemporaryDirectory() as place, chdir(place):
        os.mkdir("texts")
        Path("texts", name).write_bytes(data)
        if there_before:
            shutil.copytree(older, "out")
        refused = None
        try:
            prepare(config("texts" if folder else f"texts/{name}", documents), quiet)
        except UserError as error:
            refused = str(error)
        if refused is None:
            shards = TokenShards("out", "train")
            shards.verify()
            assert shards.n_documents > 0
            assert sorted(os.listdir()) == ["out", "texts"]
        else:
            assert f"texts/{name}" in refused or refused.startswith(NO_DOCUMENT)
            assert sorted(os.listdir()) == (["out", "texts"] if there_before else ["texts"])
            assert not there_before or content(Path("out")) == content(older)


def test_a_folder_that_holds_nothing_readable(tmp_path, monkeypatch, older):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "below").mkdir(parents=True)
    (tmp_path / "texts" / "below" / "picture.png").write_bytes(b"\x89PNG")
    shutil.copytree(older, "out")
    with pytest.raises(UserError, match=r"folder 'texts' holds no \.txt, .*\.parquet file"):
        prepare(config("texts"), quiet)
    assert content(tmp_path / "out") == content(older)


def test_a_file_that_goes_away_while_it_is_read(tmp_path, monkeypatch, older):
    """The second reading finds it gone: the older folder stays."""
    from hybridlm.data import folder

    monkeypatch.chdir(tmp_path)
    shutil.copytree(older, "out")
    Path("a.txt").write_text("a newer text", encoding="utf-8")
    fill = folder._fill
    monkeypatch.setattr(folder, "_fill", lambda *args: (os.remove("a.txt"), fill(*args)))
    with pytest.raises(UserError, match=r"'a\.txt': there is no such file"):
        prepare(config("a.txt"), quiet)
    assert content(tmp_path / "out") == content(older)
    assert os.listdir() == ["out"]


@pytest.fixture
def data(older, tmp_path):
    return shutil.copytree(older, tmp_path / "data")


def change(data, entry, value):
    """Sets an entry of the manifest's only shard, or of the manifest."""
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest["splits"]["train"][0]
    (place if entry in place else manifest)[entry] = value
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("tokens", value) for value in (None, "x", -1, 1.5, True, {})),
        *(("sources", value) for value in (3, [], [3], [{}])),
        *(("weights", value) for value in (3, ["x"], [-1], [None])),
        *(("dtype", value) for value in ("O", "float32", "V2", 3, None)),
        *(("splits", value) for value in (3, [], {}, {"train": 3})),
        *(("vocab_size", value) for value in ("x", None)),
    ],
)
def test_a_manifest_that_says_something_else(data, entry, value):
    change(data, entry, value)
    with pytest.raises(UserError, match=r"manifest\.json: it is damaged"):
        TokenShards(data, "train")


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "[]", "null", '"format_version"'])
def test_a_manifest_that_is_none(data, text):
    (data / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: it is damaged"):
        TokenShards(data, "train")


def test_an_index_whose_documents_end_before_they_begin(data):
    edges = np.load(data / "train-00000.docs.npy")
    np.save(data / "train-00000.docs.npy", np.insert(edges[1:], 0, edges[-1] + 5))
    with pytest.raises(UserError, match="one ends before it begins"):
        _ = TokenShards(data, "train").lengths
    np.save(data / "train-00000.docs.npy", edges.astype(np.float64))
    with pytest.raises(UserError, match="does not fit the manifest"):
        TokenShards(data, "train")


def test_a_shard_that_goes_away_before_it_is_verified(data):
    shards = TokenShards(data, "train")
    (data / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: it cannot be read \(No such file"):
        shards.verify()
