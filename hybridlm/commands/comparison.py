"""`compare`: models trained alike, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridlm.errors import UserError


def compare(options: argparse.Namespace) -> None:
    """train several models alike, and put them side by side

    STUDY is a YAML file that names a recipe, the models (fields of the recipe that make each), learning rates, seeds
    and budgets. For every model a learning rate is searched for in short runs; then the runs that count follow, one for
    each seed, which are measured on the test texts in contexts of several lengths. Each run is the command `hybridlm
    pretrain`. The same command goes on where it was stopped, and does nothing twice. At the end come a table, and the
    page OUT/STUDY.md with a picture (extra `plot`).

    examples:
      hybridlm compare configs/compare/families_6m.yaml --text emma.txt --out runs/families
      hybridlm compare my_study.yaml --text a.txt --text b.txt --workers 1
    """
    from hybridlm.evaluation.comparison.page import summary, write_page
    from hybridlm.evaluation.comparison.running import Store, do
    from hybridlm.evaluation.comparison.study import read_study
    from hybridlm.evaluation.plots import NoMatplotlibError
    from hybridlm.training.session import cpu_threads

    study = read_study(options.study)
    _check(options, bool(study.lengths))
    store = Store(options.out if options.out is not None else f"runs/{study.path.stem}")
    workers = options.workers or cpu_threads()
    try:
        do(study, store, options.text, lambda line: print(line, flush=True), workers)
    except KeyboardInterrupt:
        print(f"Runs that are done are on record in {store.path}; the same command goes on.", flush=True)
        raise
    finally:
        page = store.folder / f"{study.path.stem}.md"
        if records := store.records():
            try:
                write_page(study, records, page, page.with_suffix(".png"))
            except NoMatplotlibError:
                write_page(study, records, page, None)
    print(f"\n{summary(study, records)}\n\nWritten to {page}")


def _check(options: argparse.Namespace, tested: bool) -> None:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"workers={options.workers}: must be at least 1.")
    if bool(options.text) != tested:
        what = (
            "the study has lengths, so give a text to measure on"
            if tested
            else "the study has no lengths; leave it out"
        )
        raise UserError(f"--text: {what}.")
    for text in options.text:
        if not Path(text).is_file():
            raise UserError(f"--text {text}: there is no such file. Give a UTF-8 text.")


def compare_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("study", metavar="STUDY", help="the YAML file")
    add(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="a text that final models are measured on; may be repeated",
    )
    add("--out", metavar="FOLDER", help="records, runs and page (default: runs/STUDY)")
    add("--workers", type=int, metavar="N", help="runs at a time (default: one for each core)")
