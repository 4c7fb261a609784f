"""What the README shows of the memory suite."""

from pathlib import Path

import pytest
from memory_records import errors, record

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.excerpt import BEGIN, END, excerpt, write_excerpt
from hybridlm.evaluation.memory.store import Store

ROOT = Path(__file__).parents[3]


def made(wrong, **of):
    return record([errors("1x", 100, 0), errors("100x", 10_000, wrong)], **{"task": "mqar", "mixer": "bmru"} | of)


def test_the_hardest_test_of_some_tasks_and_mixers():
    records = [
        made(5),
        made(9, mixer="cmru"),
        made(7, task="z2"),
        made(8, changed={"lr": 1.0}),
        made(6, form="standard"),
    ]
    text = excerpt([*records, made(3, task="corridor_two", mixer="lru")])
    assert "means of 1 seed:" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| task, test: error rate | bmru | lru |") or rows[0] == "| task, test | bmru | lru |"
    assert [row.split(" |")[0] for row in rows[1:]] == ["| corridor_two, 100x", "| mqar, 100x"]


def test_seeds_are_counted():
    several = [made(5, seed=seed) for seed in (0, 1, 2)]
    assert "means of 3 seeds:" in excerpt(several)
    assert "means of 1 to 3 seeds:" in excerpt([*several, made(5, mixer="lru")])


def test_without_such_records_the_page_stays(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    with pytest.raises(UserError, match="none is of the tasks"):
        write_excerpt([made(1, task="z2")], page)
    assert "old" in page.read_text()
    write_excerpt([made(1)], page)
    assert "old" not in page.read_text()


def test_the_readme_is_that_of_the_records():
    """`python scripts/memory_page.py --readme README.md` was run since the last record."""
    records = Store(ROOT / "scripts" / "results" / "memory_suite").records()
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert shown == excerpt(records)
