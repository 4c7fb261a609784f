"""One process at a time in a run folder: two that write there would tear each other's checkpoints.

A POSIX record lock on RUN/.lock: the system lets go of it when the process ends, however it ends, and worker processes
do not inherit it. Where the file system knows no locks, the run goes on without.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridlm.errors import UserError

LOCK = ".lock"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Holds the run folder, which is made where there is none (and removed again where nothing came into it, with the
    folders above that were made for it). Raises UserError where another process holds it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    above = [folder for folder in run.parents if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"The run folder {run} is in use by {holder}. Wait until it has ended or stop it, or choose "
                    "another run.name."
                ) from None
        else:
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
        if [entry.name for entry in run.iterdir()] == [LOCK]:
            with suppress(OSError):
                path.unlink()
                for folder in (run, *above):
                    folder.rmdir()


def is_used(run: Path) -> bool:
    """Whether anything but a lock lies in the run folder."""
    return run.exists() and any(entry.name != LOCK for entry in run.iterdir())
