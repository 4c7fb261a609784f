"""`demo`, `prepare`, `pretrain`: from texts to a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from hybridlm.commands.shared import add_overrides, other_process
from hybridlm.errors import OtherSettingsError, UserError


def demo(options: argparse.Namespace) -> None:
    """train a small model on two novels and let it write (about 3 minutes on 2 cores)

    Trains a tokenizer and a small hybrid on two novels that come with the package, measures it, saves it, loads it back
    and lets it write. All that it makes lies below FOLDER. Give the same command again to see the results again, or to
    go on after Ctrl-C.

    examples:
      hybridlm demo
      hybridlm demo --folder runs/short-demo training.steps=100
    """
    from hybridlm.demo import demo as run_demo

    run_demo(options.folder, overrides=options.overrides)


def demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", default="runs/demo", help="where everything goes (default: %(default)s)")
    add_overrides(command)


def prepare(options: argparse.Namespace) -> None:
    """turn texts into a folder of token shards

    Reads text, JSON lines (both also as .gz or .zst), Parquet, folders of them, or a data set of the `datasets`
    library, trains a tokenizer on the training split (or takes yours), and writes token shards for training and
    validation. Memory does not grow with the texts. Duplicates are dropped. A run that was stopped goes on when the
    same command is given again. With --config it makes the data folder that a recipe describes, and nothing else.

    examples:
      hybridlm prepare books --out prepared/books --vocab-size 8192
      hybridlm prepare notes.jsonl --field body --out prepared/notes --tokenizer prepared/books/tokenizer
      hybridlm prepare leads.txt --documents paragraph --out prepared/leads --validation-share 0.05
      hybridlm prepare crawl books --weights 1,3 --workers 8 --out prepared/mixed --vocab-size 32768
      hybridlm prepare crawl books --licenses "ODC-By-1.0,public domain" --out prepared/mixed --vocab-size 32768
      hybridlm prepare --dataset roneneldan/TinyStories --out prepared/stories --vocab-size 4096
      hybridlm prepare --config configs/debug/austen_rglru_bmru.yaml
    """
    from hybridlm.data.prepare import prepare as run_preparation
    from hybridlm.training.output import LastingOutput

    lasting = LastingOutput(sys.stdout)  # hours of work do not end for a line of their report
    config = _prepare_config(options)
    try:
        folder = run_preparation(config, lambda line: print(line, file=lasting))
    except OtherSettingsError as error:
        place = "--out" if options.config is None else "data.prepare.output"
        raise UserError(f"{error.found}Choose another {place}, or give --overwrite to replace it.") from None
    print(f"Data folder: {folder}")


def prepare_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("paths", nargs="*", metavar="PATH", help="text, JSON lines or Parquet files, folders or quoted globs")
    add("--dataset", action="append", default=[], metavar="NAME", help="a data set of `datasets`; may be repeated")
    add("--builtin", action="append", default=[], metavar="NAME", help="texts that come with the package: austen")
    add("--field", help="JSON lines, Parquet, data sets: the field with the text (default: text)")
    add("--documents", choices=("file", "paragraph", "line"), help="text files: what a document is (default: file)")
    add("--weights", metavar="W,W", help="how often an epoch reads each source: PATHs, then --dataset, then --builtin")
    add("--licenses", metavar="L,L", help="licence of each source's texts, in the same order, for the card of a model")
    add("--keep-duplicates", action="store_true", help="keep documents whose text came before")
    add("--workers", type=int, metavar="N", help="processes that tokenise (default: this one); the result is the same")
    add("--out", metavar="FOLDER", help="the data folder to write")
    add("--vocab-size", type=int, metavar="N", help="train a byte-level BPE tokenizer of N tokens (default: 2048)")
    add("--tokenizer", metavar="PATH", help="take this tokenizer instead: a folder, or a name on the Hub")
    add("--validation-by", choices=("document", "position"), help="hold out whole documents, or the end of each one")
    add("--validation-share", type=float, metavar="X", help="share of the text that is held out, 0 to 0.5")
    add("--seed", type=int, help="seed of the choice of validation documents")
    add("--overwrite", action="store_true", help="replace a data folder that was made from something else")
    add("--config", metavar="RECIPE", help="prepare what this recipe's data.prepare section says")


def _prepare_config(options: argparse.Namespace) -> Any:
    """A PrepareConfig from the recipe that --config names, or from the other options, checked as a recipe is."""
    from hybridlm.training.config import load_config

    options_only = ("paths", "dataset", "builtin", "field", "documents", "out", "vocab_size", "tokenizer")
    options_only += ("validation_by", "validation_share", "seed", "weights", "licenses", "keep_duplicates")
    given = [name for name in options_only if getattr(options, name) not in (None, [], False)]
    if options.config is None:
        if options.out is None:
            raise UserError(
                "--out: give the data folder to write, e.g. --out prepared/mine; or a recipe with --config."
            )
        section = f"data.prepare={json.dumps(_prepare_section(options))}"
        return load_config(None, [section, "training.steps=1"]).data.prepare  # checked as a recipe is
    if given:
        named = ", ".join("PATH" if name == "paths" else f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--config: the recipe says how to prepare; leave out {named}, or leave out --config.")
    overrides = ["data.prepare.overwrite=true"] if options.overwrite else []
    overrides += [f"data.prepare.workers={options.workers}"] if options.workers is not None else []
    config = load_config(options.config, overrides).data.prepare
    if config is None:
        raise UserError(f"{options.config}: it has no data.prepare section, so there is nothing to prepare.")
    return config


def _prepare_section(options: argparse.Namespace) -> dict[str, Any]:
    """The data.prepare section of a recipe that says what the options say."""
    sources: list[dict[str, Any]] = [_path_source(options, path) for path in options.paths]
    sources += [{"dataset": name, "field": options.field} for name in options.dataset]
    sources += [{"builtin": name, "documents": options.documents} for name in options.builtin]
    if options.weights is not None:
        for source, weight in zip(sources, _weights(options.weights, sources), strict=True):
            source["weight"] = weight
    if options.licenses is not None:
        for source, licence in zip(sources, _for_each(options.licenses, "licenses", sources), strict=True):
            source["license"] = licence.strip() or None
    for option in ("field", "documents"):
        if getattr(options, option) is not None and not any(option in source for source in sources):
            raise UserError(f"--{option}: none of the sources has a use for it; leave it out.")
    validation = {"by": options.validation_by, "share": options.validation_share}
    names = ("vocab_size", "tokenizer", "seed", "workers")
    section = {name: getattr(options, name) for name in names} | {"output": options.out, "overwrite": options.overwrite}
    section["deduplicate"] = not options.keep_duplicates
    section["validation"] = {name: value for name, value in validation.items() if value is not None}
    section["sources"] = [{key: value for key, value in source.items() if value is not None} for source in sources]
    return {name: value for name, value in section.items() if value is not None}


def _weights(text: str, sources: list[Any]) -> list[float]:
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: give numbers with commas between them, e.g. --weights 1,0.5.") from None
    return [weight for weight, _ in zip(weights, _for_each(text, "weights", sources), strict=True)]


def _for_each(text: str, option: str, sources: list[Any]) -> list[str]:
    given = text.split(",")
    if len(given) != len(sources):
        raise UserError(f"--{option} {text}: give one for each of the {len(sources)} sources; there are {len(given)}.")
    return given


def _path_source(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """--field is for files with fields, --documents for text files; a folder or a glob may hold both."""
    from hybridlm.data.find import JSON_LINES, PARQUET, kind

    fields, file = kind(Path(path)) in JSON_LINES + PARQUET, os.path.isfile(path)
    source: dict[str, Any] = {"path": path}
    if fields or not file:
        source["field"] = options.field
    if not (fields and file):
        source["documents"] = options.documents
    return source


def pretrain(options: argparse.Namespace) -> None:
    """train a model from a recipe

    Trains as a YAML recipe says. A run that was stopped goes on from its newest checkpoint when the same command is
    given again.

    examples:
      hybridlm pretrain --config configs/debug/austen_rglru_bmru.yaml
      hybridlm pretrain --config configs/debug/austen_rglru_bmru.yaml training.steps=20 model.hidden_size=64
      hybridlm pretrain --config more.yaml --init-from runs/austen/final
      hybridlm pretrain --config configs/gpu8_350m.yaml --dry-run --device cuda --processes 8
      accelerate launch scripts/pretrain.py --config configs/debug/austen_rglru_bmru.yaml
      torchrun --nproc_per_node 2 scripts/pretrain.py --config configs/debug/austen_rglru_bmru.yaml
    """
    from hybridlm.training.config import load_config
    from hybridlm.training.loop import pretrain as run_training
    from hybridlm.training.output import last_words

    start = [] if options.init_from is None else [f"training.init_from={json.dumps(options.init_from)}"]
    config = load_config(options.config, [*options.overrides, *start])
    if options.dry_run:
        _dry_run(options, config)
        return
    for option in ("device", "processes"):
        if getattr(options, option) is not None:
            raise UserError(f"--{option}: only a dry run can be told; add --dry-run, or leave it out.")
    result = run_training(config)
    if not other_process():
        last_words(
            f"Metrics:    {result.metrics}",
            f"Checkpoint: {result.checkpoint}",
            f'Try:        hybridlm generate {result.checkpoint} "Once"',
        )


def pretrain_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="RECIPE", help="YAML file; without it every field has its default")
    command.add_argument(
        "--init-from", metavar="CHECKPOINT", help="begin with these weights: a folder, or OWNER/NAME on the Hub"
    )
    meaning = "say what would be done (sizes, memory, time, disk, paths), and stop; nothing is written or trained"
    command.add_argument("--dry-run", action="store_true", help=meaning)
    command.add_argument("--device", choices=("cpu", "cuda"), help="of a dry run: where it would train (default: here)")
    meaning = "of a dry run: how many processes would train (default: those of the launcher, or 1)"
    command.add_argument("--processes", type=int, metavar="N", help=meaning)
    add_overrides(command)
    command.more_help = _pretrain_fields  # pyright: ignore[reportAttributeAccessIssue]


def _dry_run(options: argparse.Namespace, config: Any) -> None:
    from hybridlm.training.dryrun import dry_run
    from hybridlm.training.dryrun_text import dry_run_text

    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes}: must be at least 1.")
    if not other_process():
        print(dry_run_text(dry_run(config, device=options.device, processes=options.processes)))


def _pretrain_fields() -> str:
    from hybridlm.training.config import config_help

    return config_help()
