"""metrics.jsonl holds each step once, whatever happened in between."""

import tracemalloc

import pytest

from hybridlm.errors import UserError
from hybridlm.training.metrics import JsonLines, last_validation, missing_steps, read_rows


def write(path, rows, keep_until=-1):
    record = JsonLines(path, keep_until)
    for row in rows:
        record.write(row)
    record.sync()
    record.close()


def test_rows_after_the_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": step, "loss": step / 3} for step in range(6)])
    write(path, [{"step": step, "loss": -1.0} for step in range(4, 8)], keep_until=3)
    rows = read_rows(path)
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["loss"] for row in rows] == [0, 1 / 3, 2 / 3, 1.0, -1, -1, -1, -1]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": 0}])
    write(path, [{"step": 5}])
    assert read_rows(path) == [{"step": 5}]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    write(path, [{"step": 3}], keep_until=2)
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_long_record_is_not_held(tmp_path, request):
    """Nor is what is kept of it written anew: the same bytes."""
    path = tmp_path / "metrics.jsonl"
    line = b'{"step":%d,  "loss": 2.50, "note": "\xe2\x80\xa8 and blanks"}\n'
    lines = [line % (step // 2) for step in range(60_000)]
    path.write_bytes(b"".join(lines) + b'{"step": 1')
    request.addfinalizer(tracemalloc.stop)  # left on by a failure, it would slow down every test behind this one
    for keep_until, count in ((40_000, 60_000), (20_000, 40_002)):
        tracemalloc.start()
        JsonLines(path, keep_until).close()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert held < 2**20 < 3 * path.stat().st_size
        assert path.read_bytes() == b"".join(lines[:count])
    assert last_validation(path) == {}
    write(path, [{"step": 20_000, "bits_per_byte": 3.0}, {"step": 20_001, "loss": 1.0}], keep_until=20_000)
    assert last_validation(path) == {"step": 20_000, "bits_per_byte": 3.0}


def test_rows_that_were_lost_are_found(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert missing_steps(path, 0) == []
    assert missing_steps(path, 3) == [(1, 3)]
    write(path, [{"step": 0, "bits_per_byte": 3.0}, *({"step": step} for step in (1, 2, 3))])
    assert missing_steps(path, 3) == []
    assert missing_steps(path, 4) == [(4, 4)]
    write(path, [{"step": 2}, {"step": 5}, {"step": 7, "bits_per_byte": 3.0}, {"step": 9}])
    assert missing_steps(path, 11) == [(1, 1), (3, 4), (6, 8), (10, 11)]


def test_rows_out_of_order_are_cut_off_one_by_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": step} for step in (1, 5, 2, 7, 3)])
    JsonLines(path, keep_until=3).close()
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_bad_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in (b"nonsense", b"5", b"null", b"[1]", b"\xff\xfe"):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
        for read in (read_rows, last_validation):
            with pytest.raises(UserError, match=r"metrics\.jsonl:2 is no JSON object \("):
                read(path)


def test_every_text_survives(tmp_path):
    path = tmp_path / "samples.jsonl"
    text = "a\nb\u2028c\x85d\x0ce — \U0001f600"
    write(path, [{"step": 1, "text": text}])
    assert read_rows(path) == [{"step": 1, "text": text}]


def test_not_a_number_is_refused(tmp_path):
    record = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write({"step": 1, "loss": float("nan")})
    record.close()
    assert read_rows(tmp_path / "metrics.jsonl") == []
