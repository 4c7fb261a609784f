"""A small corpus of every kind of file, its data folder, and what is inside a folder. Run as a program, it kills
preparations: `python preparation.py KILLS FOLDER...`.
"""

import gzip
import hashlib
import json
import os
import random
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


def _die_at(call: int) -> None:
    """This process kills itself at the so-manieth of the calls by which files come to be, before or behind it."""
    left = call

    def counted(name, function):
        def replacement(*args, **keywords):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **keywords)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return replacement

    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(name, getattr(os, name)))
    Path.open = counted("open", Path.open)


def _child(call: int | None) -> int:
    """Forks a preparation that dies at a call, or (None) lives until it is killed."""
    child = os.fork()
    if child == 0:
        if call is not None:
            _die_at(call)
        prepare(config(overwrite=True), lambda _: None)
        os._exit(0)
    return child


def _kill_again_and_again(kills: int, seed: int) -> int:
    """Starts a preparation until one ends, killing the first `kills`; how many were killed."""
    rng = random.Random(seed)
    killed = 0
    while True:
        by_call = killed % 2 == 0
        doomed = killed < kills
        child = _child(rng.randint(1, 150) if by_call and doomed else None)
        if not by_call and doomed:
            time.sleep(rng.uniform(0.0, 0.25))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return killed
        assert os.WIFSIGNALED(status), "a preparation failed by itself"
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        _look(Path("out"))


def _look(out: Path) -> None:
    """What has the final name is whole, or the older folder, or not there for a moment (between two renames)."""
    if out.exists():
        assert (out / "manifest.json").exists()
        assert not (out / "progress").exists()


if __name__ == "__main__":
    for seed, folder in enumerate(sys.argv[2:]):
        os.chdir(folder)
        print(_kill_again_and_again(int(sys.argv[1]), seed))
