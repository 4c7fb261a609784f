"""`chat`: turns at the terminal, or one a line from a pipe. Answers go to stdout, all else to stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from hybridlm.commands.shared import CHECKPOINT, add_drawing, add_placement, drawing
from hybridlm.commands.streams import say
from hybridlm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from hybridlm.evaluation.chat import Chat


def chat(options: argparse.Namespace) -> None:
    """talk with a checkpoint, turn by turn

    Answers what you type, word by word, and reads each turn once: between turns the model keeps its state, never the
    text. Without a chat template in the tokenizer, what you type is continued as text, with no line break behind it;
    Enter alone goes on with the last answer. --format puts turns into a form, and --stop ends answers. With a chat
    template, each turn is read as the template writes it.

    /save FILE and /load FILE keep the state for another day; /help lists all commands. Ctrl-C ends an answer, and at
    the prompt, as Ctrl-D does, the chat. From a pipe, every line is a turn or a command.

    examples:
      hybridlm chat runs/demo/run/final
      hybridlm chat runs/demo/run/final --state book.state
      hybridlm chat runs/demo/run/final --format '"{}" said he.\\n\\n"' --stop '"'
      printf 'It is a truth\\n/save truth.state\\n' | hybridlm chat runs/demo/run/final
    """
    from hybridlm.evaluation.chat import Chat
    from hybridlm.evaluation.generate import check_options
    from hybridlm.evaluation.loading import load_checkpoint
    from hybridlm.evaluation.turns import check_form, turns_for, unescaped

    settings = drawing(options)
    check_options(**settings)
    check_form(options.format)
    if options.stop == "":
        raise UserError("--stop: needs a text, as in --stop '\\n'.")
    if options.system is not None and options.state is not None:
        raise UserError("--system: it stands in front of a first turn, and --state goes on behind one. Leave one out.")
    model, tokenizer = load_checkpoint(options.checkpoint, dtype=options.dtype, device=options.device)
    stop = None if options.stop is None else unescaped(options.stop)
    talk = Chat(model, tokenizer, turns_for(tokenizer, options.format, options.system), stop, **settings)
    if options.state is not None:
        talk.load(options.state)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):  # a turn that is no UTF-8 is refused, and the conversation goes on
        sys.stdin.reconfigure(errors="surrogateescape")
    if terminal:
        say(f"{options.checkpoint}: {talk.turns.said}. /help for commands, Ctrl-D to end.")
    failed = converse(talk, _typed(terminal), terminal)
    if failed and not terminal:
        raise UserError(f"{failed} of the lines could not be done; the messages above say why.")


def chat_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("--state", metavar="FILE", help="go on from this state, of /save or of `hybridlm read`")
    add("--format", metavar="TEXT", help="what is read for a turn, {} being what you type and \\n a line break")
    add("--stop", metavar="TEXT", help="end an answer behind this text, which stays a part of it; \\n is a line break")
    add("--system", metavar="TEXT", help="the chat template's system message, in front of the first turn")
    add_drawing(command, "an answer, in tokens")
    add_placement(command)


def converse(talk: Chat, turns: Iterator[str], terminal: bool) -> int:
    """Answers turns on stdout and does what /commands say, until they end; returns how many could not be done."""
    failed, told = 0, False
    for turn in turns:
        try:
            if turn.startswith("/") and not turn.startswith("//"):
                _command(talk, turn)
            else:
                talk.say(turn.removeprefix("/"), sys.stdout)
        except EOFError:  # /quit
            break
        except UserError as error:
            say(str(error))
            failed += 1
        except KeyboardInterrupt:
            if not terminal:
                raise
            say("\nStopped; the conversation is as it was before.")
        if talk.stopped and not terminal:
            raise KeyboardInterrupt
        if talk.too_long and not told:
            made_for = talk.model.config.max_position_embeddings
            say(f"note: {talk.tokens:,} tokens were read; the model's attention was made for {made_for:,}.")
            told = True
    return failed


def _typed(terminal: bool) -> Iterator[str]:
    """Lines as they come, without their end, until Ctrl-D; on a terminal with a prompt, a history, and until Ctrl-C."""
    if sys.stdin is None:
        return
    edit = terminal and sys.stdout.isatty()
    if edit:
        with suppress(ImportError):  # not in every Python
            import readline  # noqa: F401  input() then edits lines, and remembers them
    while True:
        try:
            if edit:
                yield input("> ")
                continue
            if terminal:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            if not terminal:
                raise
            line = ""
        if not line:
            if terminal:
                say("")
            return
        yield line.removesuffix("\n").removesuffix("\r")


def _save(talk: Chat, words: str) -> None:
    talk.save(_named(words, "/save"))
    say(f"Saved {talk.tokens:,} tokens to {words}.")


def _load(talk: Chat, words: str) -> None:
    talk.load(_named(words, "/load"))
    say(f"Loaded {words}, {talk.tokens:,} tokens; what was said before is forgotten.")


def _reset(talk: Chat, words: str) -> None:
    talk.reset()
    say("All is forgotten.")


def _retry(talk: Chat, words: str) -> None:
    talk.retry(sys.stdout)


def _set(talk: Chat, words: str) -> None:
    from hybridlm.evaluation.generate import check_options

    if words:
        name, _, value = words.replace("=", " ").partition(" ")
        known = talk.settings.get(name)
        if known is None:
            hint, names = did_you_mean(name, talk.settings), ", ".join(talk.settings)
            raise UserError(f"/set {name}: there is no such setting{hint} (settings: {names}).")
        try:
            settings = {**talk.settings, name: type(known)(value)}
        except ValueError:
            kind = "a whole number" if isinstance(known, int) else "a number"
            raise UserError(f"/set {name}: needs {kind}, as in /set {name} {known}.") from None
        check_options(**settings)
        talk.settings = settings
    say(", ".join(f"{name} {value}" for name, value in talk.settings.items()))


def _help(talk: Chat, words: str) -> None:
    say("\n".join(f"  {usage:<18} {meaning}" for usage, meaning, _ in _COMMANDS.values()))
    say("  Enter alone        go on with the last answer\n  //...              a turn that begins with /")


def _quit(talk: Chat, words: str) -> None:
    raise EOFError


_COMMANDS: dict[str, tuple[str, str, Callable[[Any, str], None]]] = {
    "save": ("/save FILE", "write the state; an older state there is replaced", _save),
    "load": ("/load FILE", "go on from a state, of /save or of `hybridlm read`", _load),
    "reset": ("/reset", "forget all that was read", _reset),
    "retry": ("/retry", "answer the last turn again, with the next seed", _retry),
    "set": ("/set NAME VALUE", "temperature, top_p, top_k, max_new_tokens or seed; alone: what they are", _set),
    "help": ("/help", "this list", _help),
    "quit": ("/quit", "end, as Ctrl-D does", _quit),
}
"""Name -> how it is typed, what it does, what does it."""


def _command(talk: Chat, line: str) -> None:
    """Does what a line that begins with / says. Raises EOFError where the chat is to end."""
    name, _, words = line[1:].strip().partition(" ")
    if name not in _COMMANDS:
        known = ", ".join(f"/{command}" for command in _COMMANDS)
        hint = did_you_mean(name, _COMMANDS).replace("'", "'/", 1)
        raise UserError(f"/{name}: there is no such command{hint} (commands: {known}; // begins a turn with /).")
    usage, _, does = _COMMANDS[name]
    if words.strip() and " " not in usage:
        raise UserError(f"/{name} {words.strip()}: it takes nothing behind it. Leave that out.")
    does(talk, words.strip())


def _named(words: str, command: str) -> str:
    if not words:
        raise UserError(f"{command}: needs the name of a file, as in {command} talk.state.")
    return words
