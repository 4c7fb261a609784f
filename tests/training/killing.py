"""Kills a run with SIGKILL at random moments until it was killed often enough, starting it anew each time.

    python killing.py RECIPE KILLS SEED

One process that imported everything forks a child for each start, so that a start takes moments. Prints, as JSON:
kills, how many of them left a half-written checkpoint, starts that went on from a checkpoint, runs that came to their
end.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain


def child(config) -> int:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), Path("/dev/null").open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            pretrain(config)
            os._exit(0)
        os._exit(1)
    return pid


def ended(pid: int, seconds: float) -> bool:
    """Whether the child ends by itself within `seconds`. Raises where it fails."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"a run failed with status {status}"
            return True
        time.sleep(0.001)
    return False


def main(recipe: str, kills: int, seed: int) -> dict[str, int]:
    torch.set_num_threads(1)  # a thread of the parent would be missing in the child
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config, rng = load_config(recipe), random.Random(seed)
    run = config.run.path
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain(config)  # here, so that all that is imported on the way is there for the children
    run.rename(run.with_name("whole"))
    begun = time.monotonic()
    assert ended(child(config), 120)
    longest = (time.monotonic() - begun) / 3
    shutil.rmtree(run)
    counts = {"kills": 0, "torn": 0, "resumed": 0, "finished": 1}
    while counts["kills"] < kills or not (run / "final").is_dir():
        counts["resumed"] += bool(checkpoints(run))
        pid = child(config)
        if ended(pid, rng.uniform(0, longest) if counts["kills"] < kills else 120):
            counts["finished"] += 1
            if counts["kills"] < kills:
                shutil.rmtree(run)
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        counts["kills"] += 1
        counts["torn"] += any(run.glob("checkpoints/.*")) or any(run.glob(".final*"))
    return counts


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
