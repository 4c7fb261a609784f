"""A small corpus of every kind of file, its data folder, and what is inside a folder. Run as a program, it kills
preparations: `python preparation.py KILLS FOLDER...`.
"""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from hybridlm.data.prepare import PrepareConfig, prepare

WORDS = "the sea was calm and a grey ship went slowly past our old house while she wrote one more letter".split()  # noqa: SIM905


def write_corpus(folder: Path) -> None:
    """lines.jsonl.gz with a duplicate and an empty document, book.txt with many paragraphs."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(400)]
    rows = [{"text": text} for text in [*texts, texts[7], "  "]]
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    paragraphs = [" ".join(rng.choices(WORDS, k=rng.randint(3, 60))) for _ in range(200)]
    (folder / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")


def config(**options) -> PrepareConfig:
    """Of the corpus in the working folder, which reports name by these paths wherever it is."""
    sources = [{"path": "lines.jsonl.gz"}, {"path": "book.txt", "documents": "paragraph", "weight": 2}]
    standard = {"vocab_size": 300, "shard_tokens": 1500, "validation": {"share": 0.1}}
    return PrepareConfig(sources=sources, output="out", **standard | options)


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


def _die_at(moment: int, calls: tuple[str, ...]) -> None:
    """This process kills itself at the so-manieth moment: there is one before and one behind each of these calls."""
    left = moment

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def replacement(*args, **keywords):
            step()
            result = function(*args, **keywords)
            step()
            return result

        return replacement

    for name in calls:
        setattr(os, name, counted(getattr(os, name)))


def _child(moment: int | None, calls: tuple[str, ...], **options) -> int:
    """Forks a preparation that dies at a moment, or (None) lives until it is killed."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            _die_at(moment, calls)
        prepare(config(overwrite=True, **options), lambda _: None)
        os._exit(0)
    return child


def _ended(child: int) -> bool:
    """Whether a child came to its end; False: it was killed, and what has the final name is whole all the same."""
    _, status = os.waitpid(child, 0)
    if status == 0:
        return True
    assert os.WIFSIGNALED(status), "a preparation failed by itself"
    assert os.WTERMSIG(status) == signal.SIGKILL
    if Path("out").exists():
        names = {path.name for path in Path("out").iterdir()}
        assert "manifest.json" in names
        assert not names & {"progress", "made_of.json"}
    return False


def _kill_at_random(kills: int, seed: int) -> int:
    """Starts a preparation until it was killed so many times and then ends; how many were killed. One that ends before
    its kill comes begins from nothing again."""
    rng = random.Random(seed)
    killed, longest = 0, 0.25
    while True:
        by_time, doomed = killed % 2 == 1, killed < kills
        child = _child(None if by_time or not doomed else rng.randint(1, 150), CALLS)
        if by_time and doomed:
            time.sleep(rng.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
        if not _ended(child):
            killed += 1
        elif doomed:
            longest *= 0.8
            shutil.rmtree("out")
        else:
            return killed


def _kill_at_renames(**options) -> int:
    """The same, killing at the first, the second, ... moment around a rename; how many were killed."""
    killed = 0
    while not _ended(_child(killed + 1, ("rename",), **options)):
        killed += 1
    return killed


if __name__ == "__main__":
    for seed, folder in enumerate(sys.argv[2:]):
        os.chdir(folder)
        print(_kill_at_random(int(sys.argv[1]), seed), _kill_at_renames(vocab_size=280), _kill_at_renames())
