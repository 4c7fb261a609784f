"""Certificates beside the records of the suite: a row for what was found alike, and strange files are refused."""

import json

import pytest
from memory_records import failing, record

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.certificates import certificate_table, read_certificates
from hybridlm.evaluation.memory.page import write_page


def certificate(seed, verdict="correct", heads=16, answers=0.5, **facts):
    run = {"task": "s3", "form": "quick", "mixer": "nfsm", "seed": seed, "changed": {"lr": 0.001}}
    margins = {"margin_of_answers": answers, "margin_of_decisions": None}
    found = {"correct": {"holds_in": ["float64", "float32"]}, "wrong": {"word": [1, 0]}, "open": {"all_words_to": 7}}
    return {"run": run, "verdict": verdict, "heads": heads, **margins, **found[verdict], **facts}


def write(folder, *certificates):
    (folder / "certificates").mkdir(exist_ok=True)
    for number, facts in enumerate(certificates):
        (folder / "certificates" / f"{number}.json").write_text(json.dumps(facts))


def test_a_row_for_what_was_found_alike():
    made = [certificate(2, answers=0.25), certificate(0), certificate(1, "wrong"), certificate(3, "open", heads=None)]
    table = certificate_table(made)
    assert [[cell.text for cell in row[2:7]] for row in table.rows] == [
        ["nfsm, lr=0.001", "0, 2", "correct at every length, in float64 and float32", "16", "0.25"],
        ["nfsm, lr=0.001", "1", "wrong at length 2", "16", "0.5"],
        ["nfsm, lr=0.001", "3", "open beyond length 7", "as a whole", "0.5"],
    ]
    assert certificate_table([]) is None


def test_they_are_on_the_page(tmp_path):
    write(tmp_path, certificate(0))
    found = read_certificates(tmp_path)
    made = [record([failing(None)], "s3", "nfsm", changed={"lr": 0.001})]
    page = write_page(made, tmp_path / "page.md", None, found).read_text(encoding="utf-8")
    assert "## Certificates" in page
    assert "| s3 | quick | nfsm, lr=0.001 | 0 | correct at every length" in page
    assert "## Certificates" not in write_page(made, tmp_path / "without.md", None).read_text(encoding="utf-8")


@pytest.mark.parametrize("change", [{"run": None}, {"verdict": "perhaps"}, {"run": {"task": "s3"}}])
def test_strange_files_are_refused(tmp_path, change):
    assert read_certificates(tmp_path) == []
    write(tmp_path, certificate(0) | change)
    with pytest.raises(UserError, match=r"0\.json: not written by `hybridlm certify` of a model"):
        read_certificates(tmp_path)
