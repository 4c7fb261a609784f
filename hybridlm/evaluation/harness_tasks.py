"""Finding tasks of lm-evaluation-harness by name, and keeping quiet what `lm_eval` says to itself."""

from __future__ import annotations

import fnmatch
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from hybridlm.errors import UserError, did_you_mean, install_command
from hybridlm.files import expanded

_EXPECTED = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model", "Combined length of")
"""Warnings about our way of calling, and one that is counted instead."""


def find_tasks(names: Sequence[str], include_path: str | Path | None = None) -> dict[str, Any]:
    """The tasks and groups of those names with their data, as `lm_eval` loads them, and their own `num_fewshot`.

    names: `*` and `?` are wildcards. include_path: a folder with YAML files of your own tasks; names that all match
    there are not looked for among lm_eval's. Raises UserError: lm-eval not installed, an unknown name, a task whose
    data or code cannot be loaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"tasks: lm-eval is not installed ({error}). Run {install_command('eval')}.") from None
    names = [name for name in (word.strip() for word in names) if name]
    if not names:
        raise UserError("tasks: none is named. Give e.g. --tasks arc_easy,hellaswag")
    own = [] if include_path is None else [_folder(include_path)]
    with listening():
        manager = TaskManager(include_path=own, include_defaults=False)  # pyright: ignore[reportArgumentType]
        # Reading lm_eval's own fifteen thousand files takes seconds: only where a name is not found without them.
        if not all(fnmatch.filter(manager.all_subtasks, name) for name in names):
            manager = TaskManager(include_path=own)  # pyright: ignore[reportArgumentType]
        wanted = list(dict.fromkeys(name for word in names for name in _matching(word, manager.all_tasks, own)))
        try:
            loaded = manager.load(wanted)
        except Exception as error:  # a task is code of others: whatever it raises, the user chose it
            raise UserError(f"tasks {', '.join(wanted)}: {_unloadable(error)}") from error
    return {**loaded, "num_fewshot": {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()}}


def _folder(include_path: str | Path) -> Path:
    folder = expanded(include_path)
    if not folder.is_dir():
        raise UserError(f"include_path {include_path}: there is no such folder. Give the folder of your tasks' YAML.")
    return folder


def _matching(word: str, known: list[str], own: list[Path]) -> list[str]:
    found = fnmatch.filter(known, word)
    if found:
        return found
    broken = [f"{path} ({reason})" for folder in own for path, reason in _unreadable(folder)]
    unread = f" Left out, since they are no YAML: {'; '.join(broken)}." if broken else ""
    hint = did_you_mean(word, known)
    raise UserError(
        f"task {word!r}: unknown{hint or '.'}{unread} `lm-eval ls tasks` lists lm_eval's tasks; --include-path names a "
        "folder with your own."
    )


def _unreadable(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            yield path, one_line(error)


def _unloadable(error: Exception) -> str:
    if isinstance(error, ConnectionError) or "offline" in str(error).lower():
        return (
            f"the data lies on the Hugging Face Hub, which cannot be reached ({one_line(error)}). Run it once with a "
            "network and without HF_HUB_OFFLINE and HF_DATASETS_OFFLINE; from then on the data is on the disk."
        )
    return f"cannot be loaded ({type(error).__name__}: {one_line(error)})."


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


class _Notes(logging.Handler):
    """Collects warnings that are about the tasks, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def add(self, text: str) -> None:
        text = " ".join(text.split())
        if text not in self.notes and not text.startswith(_EXPECTED):
            self.notes.append(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Inside, lm_eval prints nothing but progress, and that only to a terminal; what it warns of is in the list."""
    logger, handler = logging.getLogger("lm_eval"), _Notes()
    before = logger.propagate, logger.handlers
    sink = sys.stderr if sys.stderr.isatty() else io.StringIO()
    logger.propagate, logger.handlers = False, [handler]
    try:
        with redirect_stdout(sink), redirect_stderr(sink), warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: handler.add(str(message))
            yield handler.notes
    finally:
        logger.propagate, logger.handlers = before
