"""Started by tests of several processes: runs that follow one another, in the same processes.

    python many_runs.py RUNS FOLDER

RUNS: JSON, a list of {name, yaml, precision, stop, fault}. Process N writes FOLDER/rankN.json: for each run its error,
and the token ids and collectives of each of its steps.

stop: the step after which Ctrl-C is pressed, or null. fault: null, or {rank, step, kind} of what happens to one process
in the save after a step: "kill", once it has written its part; "full", no file of it can grow beyond 1 KiB.
"""

import json
import os
import resource
import signal
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from accelerate import Accelerator
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.config import load_config
from hybridlm.training.journal import Journal
from hybridlm.training.signals import RunInterrupted


def main(runs: str, out: str) -> None:
    recipes = json.loads(Path(runs).read_text(encoding="utf-8"))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    precision = {recipe["precision"] for recipe in recipes}
    assert len(precision) == 1, "Accelerate keeps the precision of the first run"
    if world > 1:  # a run that finds an Accelerator leaves the processes joined
        Accelerator(cpu=True, mixed_precision=precision.pop())
    facts = {}
    for recipe in recipes:
        path = Path(out, f"{recipe['name']}-{rank}.yaml")
        path.write_text(recipe["yaml"], encoding="utf-8")
        fault = recipe["fault"] or {}
        facts[recipe["name"]] = one_run(path, recipe["stop"], fault if fault.get("rank") == rank else {})
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def one_run(path: Path, stop: int | None, fault: dict) -> dict:
    seen: dict = {"ids": [], "collectives": [], "error": None}
    make, journal_step, run_step, save = loop.batches, Journal.step, loop._Run._step, loop.save_checkpoint

    def uneven(*args, **kwargs):
        """Rows with targets left out, so that micro-batches differ in how many they have."""
        for micro_batches in make(*args, **kwargs):
            seen["ids"].append([row for batch in micro_batches for row in batch["input_ids"].tolist()])
            for batch in micro_batches:
                for ids, labels in zip(batch["input_ids"], batch["shift_labels"], strict=True):
                    labels[: int(ids[0]) % len(ids)] = -100
            yield micro_batches

    def counted(self, micro_batches):
        with Collectives() as found:
            row = run_step(self, micro_batches)
        seen["collectives"].append(found.counts)
        return row

    def step_and_signal(self, row, *args):
        journal_step(self, row, *args)
        if row["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    def failing(run, accelerator, model, optimizer, tokenizer, state, *args):
        with FAULTS[fault["kind"]]() if fault.get("step") == state.step else nullcontext():
            return save(run, accelerator, model, optimizer, tokenizer, state, *args)

    loop.batches, Journal.step, loop._Run._step, loop.save_checkpoint = uneven, step_and_signal, counted, failing
    try:
        with suppress(RunInterrupted):
            loop.pretrain(load_config(path))
    except UserError as error:
        seen["error"] = str(error)
    finally:
        loop.batches, Journal.step, loop._Run._step, loop.save_checkpoint = make, journal_step, run_step, save
    return seen


@contextmanager
def killed():
    write = FileSystemWriter.write_data

    def write_and_die(*args):
        write(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    FileSystemWriter.write_data = write_and_die
    yield


@contextmanager
def full():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FAULTS = {"kill": killed, "full": full}


class Collectives(TorchDispatchMode):
    """Counts torch.distributed's operations by name: `allreduce_` and the like, and DTensor's `all_reduce`."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:  # what it sends is seen in turn
            return NotImplemented
        name = func._schema.name.partition("::")[2]
        if func.namespace in ("c10d", "_c10d_functional") and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
