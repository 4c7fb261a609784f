"""Argument lists for `hybridlm`: lines that work, with words left out, doubled, moved, replaced and added.

Whatever they are, the command ends with an exit code and at most one message, and leaves nothing half-written; a
refusal changes nothing in the working folder. What would take minutes (a training, a benchmark) is not begun: where it
would, `Reached` ends the command. What takes longer than a moment is stopped as by Ctrl-C.
"""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from damage import ODD_TEXTS
from hypothesis import strategies as st
from workshop import Bench, leftovers

from hybridlm import cli

MOMENT = 4.0
"""Seconds until Ctrl-C."""

LINES = [
    "prepare book.txt --out new --vocab-size 270",
    "prepare book.txt short.txt --out new --documents line --weights 1,2 --tokenizer data/tokenizer --seed 1",
    "prepare book.txt --out data --overwrite --validation-by position --validation-share 0.1 --vocab-size 270",
    "prepare --config recipe.yaml --workers 0",
    "prepare prompts.jsonl --field prompt --out new --keep-duplicates --vocab-size 270 --licenses x --builtin austen",
    "pretrain --config recipe.yaml training.steps=2 run.name=short",
    "pretrain --config recipe.yaml --dry-run --device cpu --processes 1",
    "pretrain --config recipe.yaml --init-from model model.hidden_size=16 model.intermediate_size=32",
    "demo --folder demo training.steps=2",
    "generate model Her --max-new-tokens 3 --temperature 0 --top-p 0.9 --top-k 3 --seed 1",
    "generate model --state book.state --answers 2 --max-new-tokens 2 --dtype float32 --device cpu",
    "generate model --input prompts.jsonl --output answers.jsonl --max-new-tokens 2 --batch-size 2",
    "chat model --state book.state --format {}\\n --stop . --max-new-tokens 2 --system x",
    "read model short.txt --out new.state --after book.state",
    "evaluate model --text short.txt --context 16 --batch-size 2 --carry-state --out out.json",
    "evaluate model model --text short.txt --lengths 8,16 --out out.json",
    "evaluate model --tasks arc_easy --num-fewshot 1 --limit 2 --include-path data",
    "info model --json",
    "inspect model --text short.txt --tokens 20 --out page.html",
    "inspect model --text short.txt --flip 1.3,1.4 --at 5 --freeze 1.2=+1 --max-new-tokens 2",
    "bench-generation model --positions 10,20 --steps 2 --memory-limit 1 --no-peer --out numbers.json",
    "bench-generation model --peer model --time-limit 1",
    "memory-suite --quick --tasks copy_first* --mixers bmru,lru --seeds 0 --set lr=0.01 --workers 1 --out suite",
    "memory-suite --list",
    "memory-suite --recipe finite-state --mixers nfsm --tasks s3 --keep --device cpu",
    "compare study.yaml --text short.txt --out study --workers 1",
    "certify model --task s3 --limit 100 --out s3.json",
    "report run --out report.html",
    "card model --name a/b --license mit --language en --overwrite --out card.md",
    "export model exported --overwrite",
    "export trained/final exported",
    "card trained/final --benchmark a/acc=b/c:d --memory suite",
    "push model a/b --private --revision b --message x",
    "convert model converted",
]
FLAGS = [*sorted({word for line in LINES for word in line.split() if word.startswith("--")}), "--help", "--", "-x", "-"]
PLACES = [
    "model",
    "data",
    "book.txt",
    "book.state",
    "recipe.yaml",
    "new/below/deep",
    "book.txt/x",
    ".",
    "..",
    "nowhere",
]
PLACES += ["prompts.jsonl", "run", "study.yaml", "model/config.json", "owner/model", "~none/x", "/proc/x", "/dev/null"]
NUMBERS = ["0", "-1", "1", "2", "7", "1e3", "0.5", "nan", "inf", "-0", "1_0", "٣", "99999999999999999999", "1,2", "8k"]
TYPED = [
    "Hello",
    "/save x.state",
    "/load book.state",
    "/load nowhere",
    "/retry",
    "/reset",
    "/set top_k 3",
    "/set seed x",
]
TYPED += ["/set", "/help", "/nope", "//x", "", "/quit", "/save", "\x00", "é" * 50]


class Reached(BaseException):
    """The work would begin here."""


def _reached(*_: Any, **__: Any) -> None:
    raise Reached


# What takes minutes, by the name under which it is called.
HEAVY = (
    "hybridlm.training.loop._Run",
    "hybridlm.demo.pretrain",
    "hybridlm.evaluation.memory.suite.do",
    "hybridlm.evaluation.comparison.running.do",
    "hybridlm.bench.positions.measure",
    "hybridlm.evaluation.harness.evaluate_checkpoint_tasks",
    "hybridlm.data.workers.ProcessPoolExecutor",
)


PICTURES = {
    "hybridlm.evaluation.run_report.draw": [],
    "hybridlm.release.model_card.write.loss_and_validation": None,
}
"""What draws them, by the same -> what there is without."""


class CommandLines:
    """Argument lists, and what is typed into stdin."""

    def __init__(self, made: Path, place: Path):
        self.bench = Bench(made, place / "work")
        self.inputs = st.tuples(_argument_lists(), st.lists(st.sampled_from(TYPED), max_size=3).map("\n".join))

    def attempt(self, case: tuple[list[str], str]) -> str:
        argv, typed = case
        try:
            code, out, err = run(self.bench.place, argv, typed)
            now, changed = self.bench.changes()
            assert "Traceback" not in out + err
            assert not leftovers(now), f"left over: {leftovers(now)}"
            if code == 2:
                assert err.strip(), "no message"
                assert not changed or _may_keep(argv), f"changed: {changed}"
                assert err.startswith("usage: hybridlm") or any(
                    line.startswith("hybridlm") for line in err.splitlines()
                ), err[:200]
                return "usage" if err.startswith("usage: ") else "refused"
            assert code in (0, 130, None), f"exit code {code}: {err[:300]}"
            return {0: "works", 130: "stopped", None: "reached"}[code]
        finally:
            if self.bench.changes()[1]:
                self.bench.fresh()


def _may_keep(argv: list[str]) -> bool:
    """Lines that were written before a later one was refused: a chat's /save, answers to prompts of a file."""
    return bool({"chat", "--input"} & set(argv))


def run(folder: Path, argv: list[str], typed: str = "") -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr of a command in `folder`; None: its work would have begun."""
    out, err, code = StringIO(), StringIO(), None
    typing = mock.patch.object(sys, "stdin", StringIO(typed))
    with ExitStack() as inside:
        for each in (chdir(folder), redirect_stdout(out), redirect_stderr(err), typing, _nothing_heavy()):
            inside.enter_context(each)
        inside.enter_context(warnings.catch_warnings())
        inside.enter_context(_stopped_after(MOMENT))
        warnings.simplefilter("ignore")
        try:
            code = cli.main(argv)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 2
        except Reached:
            pass
    return code, out.getvalue(), err.getvalue()


@contextmanager
def _nothing_heavy() -> Iterator[None]:
    threads = torch.get_num_threads()
    patches = [mock.patch(name, _reached) for name in HEAVY]
    patches += [mock.patch(name, return_value=found) for name, found in PICTURES.items()]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        mock.patch.stopall()
        torch.set_num_threads(threads)


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def _argument_lists(draw: Any) -> list[str]:
    odd = st.sampled_from(ODD_TEXTS) | st.sampled_from(PLACES) | st.sampled_from(NUMBERS) | st.text(max_size=6)
    if draw(st.integers(0, 19)) == 0:
        return draw(st.lists(odd | st.sampled_from(FLAGS) | st.sampled_from(sorted(cli.COMMANDS)), max_size=5))
    argv = draw(st.sampled_from(LINES)).split()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(1, len(argv)))
        how = draw(st.sampled_from([*5 * ["value"], "replace", "leave out", "double", "odd", "flag with", "other"]))
        values = [place for place, word in enumerate(argv) if place and not word.startswith("-")]
        if how == "value" and values:  # most of the others end in argparse's usage
            argv[draw(st.sampled_from(values))] = draw(odd)
        elif how == "replace" and at < len(argv):
            argv[at] = draw(odd)
        elif how == "leave out" and at < len(argv) and len(argv) > 1:
            del argv[at]
        elif how == "double" and at < len(argv):
            argv.insert(at, argv[at])
        elif how == "odd":
            argv.insert(at, draw(odd))
        elif how == "flag with":
            argv[at:at] = [draw(st.sampled_from(FLAGS)), draw(odd)]
        elif how == "other":
            argv += draw(st.sampled_from(LINES)).split()[-2:]
    return [word.replace("\0", "") for word in argv]  # which no system hands on
