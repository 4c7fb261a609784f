"""What becomes of a process when another one of its run has crashed or hangs: it ends too, with one message.

gloo (CPUs) sees at once that a connection was closed, and gives up after `parallel.timeout` minutes where nobody
answers. Each process that waits for the lost one raises then, and those that wait for these follow in moments, so that
nobody is left. That surfaces in whatever was waiting (a step, a validation, a save), which is why it is translated in
one place, around the run.

With NCCL (GPUs) a crash is seen by the launcher alone, which ends the others; where none is at work, and where a
process hangs, torch's watchdog ends each process once the timeout is over, mostly by SIGABRT and with its own message.
What NCCL does raise is translated like the rest.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.sections import PretrainConfig

_SILENT = (
    "failed to pass monitoredBarrier",
    "Socket Timeout",
    "Timed out",
    "timed out",
    "timeout",
)
"""What gloo, torch's store and NCCL say where another process does not answer."""
_ENDED = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "got 0 bytes",
    "pair closure", "waiting for send/recv from rank", "remote process exited", "ncclRemoteError",
)  # fmt: skip
"""And where it has ended."""
_OURS = ("gloo", "monitoredBarrier")
"""In the text of a plain RuntimeError from torch.distributed."""


class LostPeerError(UserError):
    """Another process of the run has ended, or does not answer. Each process raises its own."""


@contextmanager
def peers(config: PretrainConfig) -> Iterator[None]:
    """Around the run, in each of its processes: turns what is raised inside because another process is lost into a
    LostPeerError. The run folder is as sound as after a kill: nothing half-written stands under a final name."""
    try:
        with _time_to_say_so():
            yield
    except UserError:
        raise
    except Exception as error:
        said = _lost(error)
        if said is None:
            raise
        raise LostPeerError(_message(config, *said)) from error


@contextmanager
def _time_to_say_so() -> Iterator[None]:
    """torchrun sends SIGTERM a moment after a process was lost. The others, which are just ending by themselves, would
    be gone before their message."""

    def end(number: int, frame: FrameType | None) -> None:
        if _lost(sys.exc_info()[1]) is None:  # nothing is lost, of what is being handled where the signal came
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:  # elsewhere Python does not allow handlers; another one has its reasons
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _lost(error: BaseException | None) -> tuple[bool, str] | None:
    """Whether another process is silent (or has ended), and what was said about it; None where the error is another."""
    seen = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, torch.distributed.DistError) or (
            type(seen) is RuntimeError and any(word in text for word in _OURS)
        ):
            lines = text.splitlines()
            # A barrier says of a process that has ended, too, that it did not pass in time, and the cause below that; a
            # timeout that closes a connection says both in one line.
            ended = [line for line in lines if _says(line, _ENDED) and not _says(line, _SILENT)]
            silent = [line for line in lines if _says(line, _SILENT)]
            if ended or silent:
                return not ended, (ended or silent)[0].strip()
        seen = seen.__cause__ or seen.__context__
    return None


def _says(line: str, words: tuple[str, ...]) -> bool:
    return any(word in line for word in words)


def _message(config: PretrainConfig, silent: bool, said: str) -> str:
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    minutes = config.parallel.timeout
    what = (
        f"waited {minutes:g} minutes (parallel.timeout) for another process of the run, which does not answer"
        if silent
        else "lost another process of the run, which has ended"
    )
    found = checkpoints(config.run.path)
    newest = f"The newest checkpoint is {found[-1]}; start" if found else "There is no checkpoint yet; start"
    again = "to go on from it" if found else "to begin again"
    said = re.sub(r"^\[[^\]]*:\d+\] ", "", said).partition(". This is typically")[0]  # where in its source; guesses
    return (
        f"Process {rank} of {world} {what}, so this one ends too. Look at the output of the others: the first error "
        f"there is the cause. {newest} the same command again {again}. (torch: {said[:300]})"
    )
