"""`memory-suite`: small models of every mixer on tasks of memory."""

from __future__ import annotations

import argparse
from typing import Any

from hybridlm.errors import UserError

FOLDER = "runs/memory-suite"
LARGEST_SEED = 999_999


def memory_suite(options: argparse.Namespace) -> None:
    """train small models on tasks of memory, and test them far beyond the training length

    For each task, mixer and seed a small model is trained and tested; a run is a line of output and a line of
    JSON in OUT. The same command goes on where it was stopped, and does no run twice. At the end come tables, and the
    page OUT/memory_suite.md of all its runs, with pictures (extra `plot`). A mixer is a pattern: "a+b" is side by side,
    "a b" stacked.

    examples:
      hybridlm memory-suite --list
      hybridlm memory-suite --quick --tasks copy_first_symbol_50 --mixers bmru,lru --seeds 0
      hybridlm memory-suite --quick --tasks "copy_first*,denoising" --mixers "bmru,lru,rglru+bmru,lru bmru"
      hybridlm memory-suite --quick --tasks s3 --mixers bmru --set threshold_init=0.25 --set epsilon_zero=0.75
      hybridlm memory-suite --quick --tasks s3 --mixers nfsm --recipe finite-state --seeds 0 --keep
    """
    if options.list:
        print(_listing())
        return
    from hybridlm.evaluation.memory import suite
    from hybridlm.evaluation.memory.recipe import named_settings, others_than_made_for, read_settings, recipe_from
    from hybridlm.evaluation.memory.store import Store

    tasks = suite.tasks_named(_names("tasks", options.tasks)) if options.tasks is not None else suite.default_tasks()
    mixers = _names("mixers", options.mixers) if options.mixers is not None else suite.MIXERS
    recipe = recipe_from(named_settings(options.recipe) | read_settings(options.set))
    store = Store(options.out)
    keep = store.folder if options.keep else None
    jobs = suite.plan(tasks, mixers, _seeds(options.seeds), options.quick, recipe, options.device, keep)
    note = others_than_made_for(options.recipe, mixers)
    if note is not None:
        print(note, flush=True)
    try:
        suite.do(jobs, store, lambda line: print(line, flush=True), _workers(options))
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C; SIGTERM
        print(f"Runs that were done are in {store.folder}; the same command goes on from there.", flush=True)
        raise
    print(f"\n{suite.tables(jobs, store)}\n\nWritten to {suite.write_results(store)}")


def _listing() -> str:
    from hybridlm.evaluation.memory.registry import TASKS, definition

    return "\n".join(f"{name}\n    {definition(name)}" for name in TASKS)


def _names(field: str, text: str) -> list[str]:
    names = [" ".join(name.split()) for name in text.split(",")]
    if not all(names):
        raise UserError(f"{field}={text!r}: a name is missing. Give names with commas between them.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{field}={text!r}: {twice!r} is there twice; give it once.")
    return names


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or not all(0 <= seed <= LARGEST_SEED for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={text!r}: must be different whole numbers from 0 to {LARGEST_SEED}, as 0,1,2.")
    return seeds


def _workers(options: argparse.Namespace) -> int:
    from hybridlm.training.session import cpu_threads

    if options.workers is not None and options.workers < 1:
        raise UserError(f"workers={options.workers}: must be at least 1.")
    return options.workers or (cpu_threads() if options.device == "cpu" else 1)


def memory_suite_options(command: argparse.ArgumentParser) -> None:
    add: Any = command.add_argument
    add("--mixers", metavar="M[,M]", help="mixers, as in patterns (default: all that the results page compares)")
    add("--tasks", metavar="T[,T]", help="tasks; * and ? are wildcards (default: all that need no network)")
    add("--seeds", metavar="S[,S]", default="0,1,2", help="one run for each (default: %(default)s)")
    add("--quick", action="store_true", help="the quick form: smaller tasks, about a minute for a run")
    add("--recipe", metavar="NAME", help="a recipe with a name, see below (default: the same for every mixer)")
    add("--set", metavar="FIELD=VALUE", action="append", default=[], help="a field of the recipe or the model's config")
    add("--out", metavar="FOLDER", default=FOLDER, help="the records (default: %(default)s)")
    add("--keep", action="store_true", help="keep the trained models too, below OUT/models")
    add("--workers", type=int, metavar="N", help="runs at a time (default: one for each core)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--list", action="store_true", help="say what the tasks are, and end")
    command.more_help = _recipe_help  # pyright: ignore[reportAttributeAccessIssue]


def _recipe_help() -> str:
    from hybridlm.evaluation.memory.recipe import recipe_help

    return recipe_help()
