"""Records on disk: appended, read back, torn lines left out."""

import json

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.store import Store, agree, key_of


def record(**changes):
    base = {"task": "t", "form": "quick", "mixer": "bmru", "seed": 0, "changed": {}, "steps": 1, "rows": 1}
    return {**base, "settings": {"lr": 0.1, "steps": 1}, "tests": [], "loss": 0.5, **changes}


def test_read_back(tmp_path):
    store = Store(tmp_path / "deep" / "folder")
    store.prepare()
    written = [record(), record(seed=1), record(task="u"), record(changed={"lr": 0.1})]
    for each in written:
        store.add(each)
    assert sorted(store.records(), key=key_of) == sorted(written, key=key_of)
    assert sorted(path.name for path in store.folder.iterdir()) == ["t.jsonl", "u.jsonl"]


def test_later_record_counts(tmp_path):
    store = Store(tmp_path)
    store.add(record(loss=1.0))
    store.add(record(loss=2.0))
    assert [each["loss"] for each in store.records()] == [2.0]


def test_records_come_in_the_order_of_their_writing(tmp_path):
    store = Store(tmp_path)
    for seed in (1, 2, 1):
        store.add(record(seed=seed))
    assert [each["seed"] for each in store.records()] == [2, 1]


def test_order_of_changed_fields_is_no_difference():
    assert key_of(record(changed={"a": 1, "b": 2})) == key_of(record(changed={"b": 2, "a": 1}))


def test_settings_agree_in_what_both_know():
    assert agree(record(), record(settings={"lr": 0.1, "made_up_later": 3}))
    assert not agree(record(), record(settings={"lr": 0.2}))


def test_torn_line_is_left_out_and_what_follows_is_whole(tmp_path):
    store = Store(tmp_path)
    store.add(record())
    path = tmp_path / "t.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps(record(seed=1)).encode()[:30])
    assert [each["seed"] for each in store.records()] == [0]
    store.add(record(seed=2))
    assert [each["seed"] for each in store.records()] == [0, 2]


def test_no_folder_yet(tmp_path):
    assert Store(tmp_path / "none").records() == []


def test_refused(tmp_path):
    with pytest.raises(UserError, match="out='': must be given"):
        Store("")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        Store(file)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: not written by the memory suite"):
        Store(tmp_path).records()
