"""The `hybridlm` command. Each subcommand parses its options, calls one function of the package and prints the result.

The docstring of a command's function is its --help. What a command needs is imported when it runs. Exit codes: 0 done;
2 something the user can put right, said in one message; 130 after Ctrl-C (143 after SIGTERM); 141 where the reader of a
pipe has gone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hybridlm.errors import UserError

CHECKPOINT = "the folder of a checkpoint, or OWNER/MODEL on the Hugging Face Hub"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command (None: of `sys.argv`) and returns its exit code.

    Options that cannot be parsed end in SystemExit(2), as in argparse; an interrupted run in SystemExit(130 or 143).
    """
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"{options.prog}: {_other_process()}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.prog}: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is left in the buffer has no reader; without this, Python would complain about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(
        prog="hybridlm",
        description="Language models that mix fading and persistent memory: prepare, pretrain, evaluate, generate.",
        epilog="hybridlm COMMAND --help explains a command and gives examples. Start with: hybridlm demo",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_options(_add(commands, "demo", _demo))
    _prepare_options(_add(commands, "prepare", _prepare))
    _pretrain_options(_add(commands, "pretrain", _pretrain))
    _generate_options(_add(commands, "generate", _generate))
    _read_options(_add(commands, "read", _read))
    _evaluate_options(_add(commands, "evaluate", _evaluate))
    _info_options(_add(commands, "info", _info))
    _export_options(_add(commands, "export", _export))
    return parser


def _demo(options: argparse.Namespace) -> None:
    """train a small model on two novels and let it write (about 3 minutes on 2 cores)

    Trains a tokenizer and a small hybrid on two novels that come with the package, measures it, saves it, loads it back
    and lets it write. All that it makes lies below FOLDER. Give the same command again to see the results again, or to
    go on after Ctrl-C.

    examples:
      hybridlm demo
      hybridlm demo --folder runs/short-demo training.steps=100
    """
    from hybridlm.demo import demo

    demo(options.folder, overrides=options.overrides)


def _demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", default="runs/demo", help="where everything goes (default: %(default)s)")
    _add_overrides(command)


def _prepare(options: argparse.Namespace) -> None:
    """turn texts into a folder of token shards

    Reads text files, folders, JSONL files or a data set of the `datasets` library, trains a tokenizer on the training
    split (or takes yours), and writes token shards for training and validation. With --config it makes the data
    folder that a recipe describes, and nothing else.

    examples:
      hybridlm prepare books --out prepared/books --vocab-size 8192
      hybridlm prepare notes.jsonl --field body --out prepared/notes --tokenizer prepared/books/tokenizer
      hybridlm prepare leads.txt --documents paragraph --out prepared/leads --validation-share 0.05
      hybridlm prepare --dataset roneneldan/TinyStories --out prepared/stories --vocab-size 4096
      hybridlm prepare --config configs/debug/austen_rglru_bmru.yaml
    """
    from hybridlm.data.prepare import prepare

    print(f"Data folder: {prepare(_prepare_config(options))}")


def _prepare_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("paths", nargs="*", metavar="PATH", help="text files, .jsonl files, folders or quoted globs")
    add("--dataset", action="append", default=[], metavar="NAME", help="a data set of `datasets`; may be repeated")
    add("--builtin", action="append", default=[], metavar="NAME", help="texts that come with the package: austen")
    add("--field", help="JSONL and data sets: the field that holds the text (default: text)")
    add("--documents", choices=("file", "paragraph", "line"), help="text files: what a document is (default: file)")
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
    options_only += ("validation_by", "validation_share", "seed")
    given = [name for name in options_only if getattr(options, name) not in (None, [])]
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
    config = load_config(options.config, ["data.prepare.overwrite=true"] if options.overwrite else []).data.prepare
    if config is None:
        raise UserError(f"{options.config}: it has no data.prepare section, so there is nothing to prepare.")
    return config


def _prepare_section(options: argparse.Namespace) -> dict[str, Any]:
    """The data.prepare section of a recipe that says what the options say."""
    sources: list[dict[str, Any]] = [_path_source(options, path) for path in options.paths]
    sources += [{"dataset": name, "field": options.field} for name in options.dataset]
    sources += [{"builtin": name, "documents": options.documents} for name in options.builtin]
    for option in ("field", "documents"):
        if getattr(options, option) is not None and not any(option in source for source in sources):
            raise UserError(f"--{option}: none of the sources has a use for it; leave it out.")
    validation = {"by": options.validation_by, "share": options.validation_share}
    names = ("vocab_size", "tokenizer", "seed")
    section = {name: getattr(options, name) for name in names} | {"output": options.out, "overwrite": options.overwrite}
    section["validation"] = {name: value for name, value in validation.items() if value is not None}
    section["sources"] = [{key: value for key, value in source.items() if value is not None} for source in sources]
    return {name: value for name, value in section.items() if value is not None}


def _path_source(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """--field is for JSONL files, --documents for text files; a folder or a glob may hold both."""
    jsonl, file = path.lower().endswith((".jsonl", ".ndjson")), os.path.isfile(path)
    source: dict[str, Any] = {"path": path}
    if jsonl or not file:
        source["field"] = options.field
    if not (jsonl and file):
        source["documents"] = options.documents
    return source


def _pretrain(options: argparse.Namespace) -> None:
    """train a model from a recipe

    Trains as a YAML recipe says. A run that was stopped goes on from its newest checkpoint when the same command is
    given again.

    examples:
      hybridlm pretrain --config configs/debug/austen_rglru_bmru.yaml
      hybridlm pretrain --config configs/debug/austen_rglru_bmru.yaml training.steps=20 model.hidden_size=64
      accelerate launch scripts/pretrain.py --config configs/debug/austen_rglru_bmru.yaml
      torchrun --nproc_per_node 2 scripts/pretrain.py --config configs/debug/austen_rglru_bmru.yaml
    """
    from hybridlm.training.config import load_config
    from hybridlm.training.loop import pretrain

    result = pretrain(load_config(options.config, options.overrides))
    if not _other_process():
        print(f"Metrics:    {result.metrics}")
        print(f"Checkpoint: {result.checkpoint}")
        print(f'Try:        hybridlm generate {result.checkpoint} "Once"')


def _pretrain_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="RECIPE", help="YAML file; without it every field has its default")
    _add_overrides(command)
    command.more_help = _pretrain_fields  # pyright: ignore[reportAttributeAccessIssue]


def _pretrain_fields() -> str:
    from hybridlm.training.config import config_help

    return config_help()


def _generate(options: argparse.Namespace) -> None:
    """let a checkpoint write

    Continues PROMPT and prints the text as it is written.

    examples:
      hybridlm generate runs/demo/run/final "It is a truth"
      hybridlm generate runs/demo/run/final "Anne" --temperature 0 --max-new-tokens 50
      hybridlm generate runs/demo/run/final --seed 7 --top-p 0.95
      hybridlm generate runs/demo/run/final " She answered" --state emma.state --answers 3
    """
    from hybridlm.evaluation.generate import check_options, generate_text
    from hybridlm.evaluation.loading import load_checkpoint

    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
    choice = {name: getattr(options, name) for name in names}
    check_options(**choice, answers=options.answers)  # before the model is read
    model, tokenizer = load_checkpoint(options.checkpoint, dtype=options.dtype, device=options.device)
    if options.state is not None:
        from hybridlm.evaluation.reading import load_state

        choice["state"] = load_state(model, tokenizer, options.state)
    for number in range(options.answers):
        if options.answers > 1:
            print(f"{chr(10) * (number > 0)}[{number + 1}, seed {options.seed + number}]")
        choice["seed"] = options.seed + number
        generate_text(model, tokenizer, options.prompt, stream=sys.stdout, **choice)


def _generate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("prompt", nargs="?", default="", metavar="PROMPT", help="the beginning (default: empty, a new document)")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="length of what is written (default: %(default)s)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest token (default: %(default)s)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="draw from the likeliest tokens that sum to X (default: 1)",
    )
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (default: 0, all)")
    add("--seed", type=int, default=0, help="the same seed writes the same text (default: %(default)s)")
    add("--state", metavar="FILE", help="go on from what `hybridlm read` has read; PROMPT continues that text")
    add("--answers", type=int, default=1, metavar="N", help="write N texts, with seeds from --seed on (default: 1)")
    _add_placement(command)


def _read(options: argparse.Namespace) -> None:
    """read a long text once, into a file that `generate` begins from

    Sends the text through the model and saves the state that is left of it, which has the same size for a page and for
    a library where the pattern has no full attention. `generate --state` then writes any number of answers, each from
    the end of the text, without reading it again.

    examples:
      hybridlm read runs/demo/run/final emma.txt --out emma.state
      hybridlm generate runs/demo/run/final " She answered" --state emma.state --answers 3
      hybridlm read runs/demo/run/final volume_2.txt --after volume_1.state --out both.state
    """
    from hybridlm.evaluation.reading import progress_line, read_book, render

    names = ("after", "dtype", "device")
    choice = {name: getattr(options, name) for name in names}
    with progress_line(sys.stderr) as progress:
        facts = read_book(options.checkpoint, options.book, options.out, progress=progress, **choice)
    print(render(facts))
    print(f'Try:    hybridlm generate {options.checkpoint} " And" --state {options.out}')


def _read_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("book", metavar="BOOK", help="the text file, UTF-8")
    add("--out", required=True, metavar="FILE", help="where the state goes; an older state there is replaced")
    add("--after", metavar="FILE", help="go on from this state: BOOK continues the text that was read into it")
    _add_placement(command)


def _evaluate(options: argparse.Namespace) -> None:
    """measure a checkpoint on a text, or on tasks of lm-evaluation-harness

    With --text: bits per byte and perplexity per token of a UTF-8 text, which is taken as one document. With --tasks:
    what the tasks measure (needs the extra `eval`, and the network where a task's data is not on the disk yet). The
    numbers are printed, and written as JSON with all that is needed to compare them: tokenizer, context, dtype,
    versions.

    examples:
      hybridlm evaluate runs/demo/run/final --text book.txt
      hybridlm evaluate runs/demo/run/final --text book.txt --context 1024 --dtype bfloat16
      hybridlm evaluate runs/demo/run/final --text book.txt --carry-state
      hybridlm evaluate runs/demo/run/final --tasks arc_easy,hellaswag --num-fewshot 5
      hybridlm evaluate runs/demo/run/final --tasks mine --include-path my_tasks --limit 100
    """
    from hybridlm.evaluation.report import write_json

    facts, text, path = _measured(options)
    print(text)
    print(f"Written to {write_json(path, facts)}")


def _measured(options: argparse.Namespace) -> tuple[dict[str, Any], str, Any]:
    """The facts of `evaluate`, the same as text, and the path that they go to."""
    from hybridlm.evaluation import report

    choice = {name: getattr(options, name) for name in ("context", "batch_size", "dtype", "device")}
    kind, other = ("text", _ONLY_TASKS) if options.tasks is None else ("tasks", _ONLY_TEXT)
    for name in other:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: has no meaning with --{kind}; leave it out.")
    if options.tasks is None:
        facts = report.evaluate_checkpoint(options.checkpoint, options.text, carry_state=options.carry_state, **choice)
        return facts, report.render(facts), options.out or report.default_output(facts)
    from hybridlm.evaluation import harness

    choice |= {name: getattr(options, name) for name in _ONLY_TASKS}
    facts = harness.evaluate_checkpoint_tasks(options.checkpoint, options.tasks.split(","), **choice)
    return facts, harness.render(facts), options.out or harness.default_output(facts)


_ONLY_TEXT, _ONLY_TASKS = ("carry_state",), ("include_path", "limit", "num_fewshot")


def _evaluate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    either = command.add_mutually_exclusive_group(required=True)
    either.add_argument("--text", metavar="FILE", help="the text file, UTF-8")
    either.add_argument("--tasks", metavar="NAME[,NAME]", help="tasks of lm-evaluation-harness; * and ? are wildcards")
    add("--context", type=int, metavar="N", help="tokens in a window (default: the length of the training, if known)")
    add("--batch-size", type=int, metavar="B", help="windows in one forward (default: 8); changes no number")
    add("--carry-state", action="store_true", help="--text: carry the state on from window to window")
    add("--include-path", metavar="DIR", help="--tasks: a folder with YAML files of your own tasks")
    add("--num-fewshot", type=int, metavar="K", help="--tasks: examples in the prompt (default: as each task says)")
    add("--limit", type=int, metavar="N", help="--tasks: only the first N examples of each, to try a task out")
    add("--out", metavar="JSON", help="where to write (default: below CHECKPOINT/evaluation)")
    _add_placement(command)


def _info(options: argparse.Namespace) -> None:
    """say what a checkpoint is

    Pattern, widths, parameters by kind, vocabulary, dtype, and the memory that a sequence needs while it is generated.

    examples:
      hybridlm info runs/demo/run/final
      hybridlm info runs/demo/run/final --json
    """
    from hybridlm.evaluation.info import describe, render

    facts = describe(options.checkpoint)
    print(json.dumps(facts, indent=2) if options.json else render(facts))


def _info_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    command.add_argument("--json", action="store_true", help="print JSON")


def _export(options: argparse.Namespace) -> None:
    """write a checkpoint that loads without hybridlm

    Writes a folder, or a repository on the Hugging Face Hub, with weights, tokenizer and the code of the model. It
    loads where only torch and transformers are installed, with trust_remote_code=True. Fine-tuned heads
    (classification, question answering) are exported as they are.

    examples:
      hybridlm export runs/demo/run/final my-model
      hybridlm export runs/demo/run/final my-model --overwrite
      hybridlm export runs/demo/run/final --push my-account/my-model --private
    """
    from hybridlm.release.export import export_checkpoint
    from hybridlm.release.push import push_checkpoint

    _check_export(options)
    if options.push is None:
        export = export_checkpoint(options.checkpoint, options.out, overwrite=options.overwrite)
    else:
        export = push_checkpoint(options.checkpoint, options.push, private=options.private or None)
    print(f"Done: {export.parameters:,} parameters{', tokenizer' * export.tokenizer}, code. Load it with:\n")
    print(export.snippet())


def _check_export(options: argparse.Namespace) -> None:
    if (options.out is None) == (options.push is None):
        raise UserError("give either OUT, the folder to write, or --push OWNER/NAME, a repository on the Hub.")
    if options.private and options.push is None:
        raise UserError("--private: only a repository on the Hub can be private; leave it out, or give --push.")
    if options.overwrite and options.push is not None:
        raise UserError("--overwrite: it replaces a folder; --push adds a commit to what is there. Leave it out.")


def _export_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("out", nargs="?", metavar="OUT", help="the folder to write")
    add("--overwrite", action="store_true", help="replace an earlier export in OUT")
    add("--push", metavar="OWNER/NAME", help="upload to this repository on the Hugging Face Hub instead")
    add("--private", action="store_true", help="make a new repository private")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that can append text which is made only when help is printed."""

    more_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.more_help()}\n" if self.more_help is not None else "")


class _Version(argparse.Action):
    """Prints the versions that decide a number."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import torch
        import transformers

        import hybridlm

        print(", ".join(f"{module.__name__} {module.__version__}" for module in (hybridlm, torch, transformers)))
        parser.exit()


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    """A subcommand with the docstring of `run` as its help."""
    short, _, text = inspect.cleandoc(run.__doc__ or name).partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=short, description=text.strip(), formatter_class=style)
    command.set_defaults(run=run, prog=command.prog)
    return command


def _add_overrides(command: argparse.ArgumentParser) -> None:
    meaning = "fields of the recipe to set, values as in YAML"
    command.add_argument("overrides", nargs="*", metavar="SECTION.FIELD=VALUE", help=meaning)


def _add_placement(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def _other_process() -> str:
    """ "process 1: " in the processes of a launcher other than the first; "" elsewhere."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


if __name__ == "__main__":
    sys.exit(main())
