"""Started by tests of several processes: runs that follow one another, in the same processes.

    python many_runs.py RUNS FOLDER

RUNS: JSON, a list of {name, yaml, precision, stop}. Process N writes FOLDER/rankN.json: for each run its error, and the
token ids and collectives of each of its steps. stop: the step after which Ctrl-C is pressed, or null.
"""

import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
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
        facts[recipe["name"]] = one_run(path, recipe["stop"])
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def one_run(path: Path, stop: int | None) -> dict:
    seen: dict = {"ids": [], "collectives": [], "error": None}
    make, journal_step, run_step = loop.batches, Journal.step, loop._Run._step

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

    loop.batches, Journal.step, loop._Run._step = uneven, step_and_signal, counted
    try:
        with suppress(RunInterrupted):
            loop.pretrain(load_config(path))
    except UserError as error:
        seen["error"] = str(error)
    finally:
        loop.batches, Journal.step, loop._Run._step = make, journal_step, run_step
    return seen


class Collectives(TorchDispatchMode):
    """Counts torch.distributed's operations by name."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func._schema.name.removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
