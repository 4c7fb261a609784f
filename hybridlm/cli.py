"""The `hybridlm` command: its subcommands, which are in `hybridlm.commands`, and how it ends.

The docstring of a command's function is its --help. Exit codes: 0 done; 2 something the user can put right, said in one
message, such as a full disk where the output goes (a run needs no output: it ends with 0 all the same); 130 after
Ctrl-C (143 after SIGTERM, 138 after SIGUSR1; a run has saved a checkpoint then, and a memory suite has cleared up); 141
where the reader of a pipe has gone.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hybridlm.commands import bench, certificate, comparison, inspector, measure, move, suite, talk, train, write
from hybridlm.commands.shared import other_process
from hybridlm.commands.streams import escape_what_stdout_lacks, open_closed_streams, output_fault, say, settle
from hybridlm.errors import UserError, did_you_mean
from hybridlm.ops.dispatch import check_environment

Command = Callable[[argparse.Namespace], None]
COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": (train.demo, train.demo_options),
    "prepare": (train.prepare, train.prepare_options),
    "pretrain": (train.pretrain, train.pretrain_options),
    "generate": (write.generate, write.generate_options),
    "chat": (talk.chat, talk.chat_options),
    "read": (write.read, write.read_options),
    "evaluate": (measure.evaluate, measure.evaluate_options),
    "info": (measure.info, measure.info_options),
    "inspect": (inspector.inspect, inspector.inspect_options),
    "bench-generation": (bench.bench_generation, bench.bench_generation_options),
    "memory-suite": (suite.memory_suite, suite.memory_suite_options),
    "compare": (comparison.compare, comparison.compare_options),
    "certify": (certificate.certify, certificate.certify_options),
    "report": (measure.report, measure.report_options),
    "card": (move.card, move.card_options),
    "export": (move.export, move.export_options),
    "push": (move.push, move.push_options),
    "convert": (move.convert, move.convert_options),
}
"""Name -> what runs it, and what adds its options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command (None: of `sys.argv`) and returns its exit code.

    Options that cannot be parsed end in SystemExit(2), as in argparse; an interrupted run in SystemExit(130 or 143).
    """
    prog = "hybridlm"
    open_closed_streams()
    escape_what_stdout_lacks()
    try:
        options = build_parser().parse_args(argv)
        prog = options.command.prog
        check_environment()
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        say(f"{prog}: {other_process()}{error}")
        return 2
    except KeyboardInterrupt:
        say(f"{prog}: stopped by Ctrl-C.")
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        fault = output_fault()
        if fault is not None:
            what = f"stdout cannot be written ({fault}). Send the output elsewhere."
        elif isinstance(error.filename, str | bytes):  # what no command foresaw of a path, such as a name too long
            what = f"{os.fsdecode(error.filename)[:200]}: {error.strerror}. Put that right, or give another path."
        else:  # something else failed
            raise
        say(f"{prog}: {other_process()}{what}")
        return 2
    finally:
        settle()
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
    for name, (run, add_options) in COMMANDS.items():
        add_options(_add(commands, name, run))
    parser.commands = commands.choices
    return parser


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that can append text which is made only when help is printed, and that guesses what a misspelt
    option or command was to be."""

    more_help: Callable[[], str] | None = None
    commands: Mapping[str, _Parser] | None = None

    def __init__(self, **options: Any):
        super().__init__(**options)
        # argparse takes -5,10 and -1k for options. They are values, which their own option refuses by name.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, but an option that nobody knows is an error of the command that it was given to. (argparse
        hands it up to the parser of all commands, which prints its own usage.)"""
        args = sys.argv[1:] if args is None else list(args)
        ours = args
        if self.commands is not None:
            ours = args[:1]  # what follows is the command's
            if args and not args[0].startswith("-") and args[0] not in self.commands:
                hint, names = did_you_mean(args[0], self.commands), ", ".join(self.commands)
                self.error(f"there is no command {args[0]!r}{hint} (commands: {names})")
        for option in self._unknown_options(ours):
            words = [name.removeprefix("--") for name in self._option_string_actions]
            hint = did_you_mean(option.lstrip("-"), words).replace("'", "'--", 1)
            self.error(f"there is no option {option}{hint}")
        options, left = super().parse_known_args(args, namespace)
        if left and self.commands is None:
            # argparse takes arguments such as SECTION.FIELD=VALUE in one row only; those behind an option go with them.
            several = [action for action in self._get_positional_actions() if action.nargs in ("*", "+")]
            if not several:
                self.error(f"unrecognized arguments: {' '.join(left)}")
            name = several[-1].dest
            setattr(options, name, [*getattr(options, name), *(each for each in left if each != "--")])
            left = []
        return options, left

    def _unknown_options(self, args: Sequence[str]) -> Iterator[str]:
        """What argparse takes for an option, and does not know."""
        for arg in args[: args.index("--")] if "--" in args else args:
            name = arg.partition("=")[0]
            if not name.startswith("-") or name == "-" or " " in arg or self._negative_number_matcher.match(arg):
                continue
            if not any(known.startswith(name) for known in self._option_string_actions):
                yield name

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


def _add(commands: Any, name: str, run: Command) -> argparse.ArgumentParser:
    """A subcommand with the docstring of `run` as its help."""
    short, _, text = inspect.cleandoc(run.__doc__ or name).partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=short, description=text.strip(), formatter_class=style)
    command.set_defaults(run=run, command=command)
    return command


if __name__ == "__main__":
    sys.exit(main())
