"""Stops a run again and again until it was killed often enough, starting it anew each time.

    python killing.py RECIPE KILLS SEED

Most starts are killed with SIGKILL at a random moment. Some get SIGTERM inside their next validation before that, so
that the checkpoint of that step is replaced by another one of it, and some kill themselves as soon as a checkpoint was
moved aside for such a one: both names of it are hidden then.

One process that imported everything forks a child for each start, so that a start takes moments. Prints, as JSON:
kills, how many of them left a half-written checkpoint, or one that was moved aside only; starts that went on from a
checkpoint, those that SIGTERM ended in a validation, runs that came to their end.
"""

import contextlib
import gc
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from hybridlm.training import validation
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain
from hybridlm.training.signals import RunInterrupted

STOPPED = 128 + signal.SIGTERM


def stop_in_validation() -> None:
    """SIGTERM comes before the second batch of the next validation after a step."""
    batches, sent = validation.validation_batches, []

    def signalled(*args, **keywords):
        for number, each in enumerate(batches(*args, **keywords)):
            if number == 1 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            yield each

    validation.validation_batches = signalled


def die_between_renames() -> None:
    """As soon as a checkpoint is moved aside."""
    rename = os.rename

    def fatal(old, new) -> None:
        rename(old, new)
        if Path(new).name.startswith(".step-") and ".old-" in Path(new).name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = fatal


def child(config, *harms) -> int:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), Path("/dev/null").open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            for harm in harms:
                harm()
            try:
                pretrain(config)
            except RunInterrupted as stopped:
                os._exit(int(stopped.code or 0))
            os._exit(0)
        os._exit(1)
    return pid


def ended(pid: int, seconds: float) -> int:
    """The exit code of the child, which is killed where it does not end by itself within `seconds`; -9 then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(recipe: str, kills: int, seed: int) -> dict[str, int]:
    torch.set_num_threads(1)  # a thread of the parent would be missing in the child
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config, rng = load_config(recipe), random.Random(seed)
    run = config.run.path
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain(config)  # here, so that all that is imported on the way is there for the children
    run.rename(run.with_name("whole"))
    gc.collect()
    gc.freeze()  # no child looks through what is there now when it collects garbage
    begun = time.monotonic()
    assert ended(child(config), 120) == 0
    longest = 0.6 * (time.monotonic() - begun)  # well beyond the first checkpoint
    shutil.rmtree(run)
    counts = {"kills": 0, "torn": 0, "aside": 0, "resumed": 0, "stopped": 0, "finished": 1}
    code, reached = 0, 0
    while (last := counts["kills"] >= kills) is False or not (run / "final").is_dir():
        counts["resumed"] += bool(checkpoints(run))
        harms = rng.choice([(), (), (), (), (), (stop_in_validation,)])
        if code == STOPPED:
            harms = rng.choice([(), (die_between_renames,), (stop_in_validation, die_between_renames)])
        # What is to come to its end, or to the harm, has the time for it.
        code = ended(child(config, *(() if last else harms)), 120 if last or harms else rng.uniform(0, longest))
        before, reached = reached, _reached(run)
        assert reached >= before, f"what was saved of step {before} is lost; {reached} is left"
        if code == 0:
            counts["finished"] += 1
            if not last:
                shutil.rmtree(run)
                reached = 0
        elif code == STOPPED:
            counts["stopped"] += 1
        else:
            assert code == -signal.SIGKILL, f"a run failed with exit code {code}"
            counts["kills"] += 1
            counts["torn"] += any(run.glob("checkpoints/.*")) or any(run.glob(".final*"))
            counts["aside"] += any(_hidden(path) for path in run.glob("checkpoints/.step-*.old-*"))
    return counts


def _reached(run: Path) -> int:
    """The newest step that there is a whole checkpoint of, if only of an older one that was moved aside."""
    names = [path.name for path in run.glob("checkpoints/*step-*") if ".partial-" not in path.name]
    return max((int(re.findall(r"step-(\d+)", name)[0]) for name in names), default=0)


def _hidden(aside: Path) -> bool:
    return not aside.with_name(aside.name.removeprefix(".").rpartition(".old-")[0]).exists()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
