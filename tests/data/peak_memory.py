"""Peak memory of preparing corpora of some sizes: `python peak_memory.py FOLDER MEGABYTES...` prints one line for each,
the growth of the largest resident set over that of the empty process, in kilobytes.
"""

import json
import os
import random
import resource
import sys
from pathlib import Path

from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.data.sources import Source


def _write(path: Path, megabytes: float) -> None:
    rng = random.Random(0)
    words = [f"{rng.randrange(10**6):x}" for _ in range(300)]
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            line = json.dumps({"text": " ".join(rng.choices(words, k=200))})
            file.write(line + "\n")
            size += len(line)


def _peak(path: Path, output: str) -> int:
    """In a process of its own: kilobytes over what the process began with."""
    child = os.fork()
    if child == 0:
        config = PrepareConfig(
            sources=[Source(path=str(path))], output=output, vocab_size=300, shard_tokens=100_000,
            tokenizer_bytes=1_000_000,
        )  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prepare(config, lambda _: None)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        Path(output + ".kilobytes").write_text(str(grown))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the preparation failed"
    return int(Path(output + ".kilobytes").read_text())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number, megabytes in enumerate(sys.argv[2:]):
        path = folder / f"{number}.jsonl"
        _write(path, float(megabytes))
        print(_peak(path, str(folder / f"out-{number}")))
