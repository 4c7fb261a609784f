"""Data folders with a drawn index of documents, without texts: for tests of orders and of memory.

python synthetic.py FOLDER DOCUMENTS        kilobytes that an open data folder takes: its index, then an epoch as well
"""

import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hybridlm.data import TokenShards, Windows
from hybridlm.data.shards import FORMAT_VERSION, MANIFEST, manifest_text


def write_index(folder: Path, documents: int, sources: int = 1, shards: int = 3, mean: int = 40) -> Path:
    """Documents of 2 to 2 * mean tokens in equal shards, sources one after another. Every token is 0, but the files
    take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    bits = np.random.Philox(key=[7, documents])
    lengths = 2 + (bits.random_raw(documents) % (2 * mean - 1)).astype(np.int64)
    source = np.arange(documents) * sources // documents
    entries = []
    for number, mine in enumerate(np.array_split(np.arange(documents), shards)):
        name, offsets = f"train-{number:05d}", np.concatenate([[0], np.cumsum(lengths[mine])])
        np.save(folder / f"{name}.docs.npy", offsets)
        np.save(folder / f"{name}.bytes.npy", 3 * lengths[mine])
        with (folder / f"{name}.bin").open("wb") as file:
            file.truncate(2 * int(offsets[-1]))
        parts = [lengths[mine[source[mine] == s]] for s in range(sources)]
        entries.append(
            {
                "name": name,
                "tokens": int(offsets[-1]),
                "documents": len(mine),
                "bytes": 3 * int(offsets[-1]),
                "sources": [
                    {"documents": len(part), "tokens": int(part.sum()), "bytes": 3 * int(part.sum())} for part in parts
                ],
                "sha256": {f"{name}.{kind}": "unknown" for kind in ("bin", "docs.npy", "bytes.npy")},
            }
        )
    manifest = {
        "format_version": FORMAT_VERSION, "fingerprint": "0", "vocab_size": 300, "dtype": "uint16", "made_of": {},
        "weights": [1.0] * sources, "sources": [], "splits": {"train": entries, "validation": []},
    }  # fmt: skip
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return folder


def open_index(folder: Path, weights: list[float] | None = None) -> TokenShards:
    """With a tokenizer that has symbols only: start 0, end 1."""
    shards = TokenShards(folder, "train", weights)
    shards.__dict__["tokenizer"] = SimpleNamespace(bos_token_id=0, eos_token_id=1)
    return shards


def _resident() -> int:
    """Kilobytes of this process alone: without mapped files, which processes share."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def main(folder: Path, documents: int) -> None:
    write_index(folder, documents)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    before = _resident()
    shards = open_index(folder)
    index = _resident() - before
    windows = Windows(shards, 128)
    windows.sample(0)
    epoch = _resident() - before
    windows.sample(windows.per_epoch)
    print(index, epoch, _resident() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
