"""Processes of a run for tests, started in moments: forked from one that has imported everything.

    done = launch([script, recipe], ranks=2)          # as torchrun would start them, rank 0 first
    done = launch(["-m", "hybridlm.cli", "info"])     # one process, without the variables of a launcher
    done = launch(["-c", code], imported="libraries")  # hybridlm is not imported yet

`python launching.py` is that one process: it reads requests, a line of JSON each, forks what they ask for, waits, and
answers with a line. It has imported torch and transformers; a fork of it has imported hybridlm too. Neither computes
anything itself, so that a child starts without threads and with nothing but imported modules: what reads the
environment while the libraries are imported needs a process of its own (`subprocess`).
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Done:
    returncodes: list[int]
    """Of each process; -N: ended by signal N."""
    stdout: str
    """Of all processes, rank after rank."""
    stderr: str

    @property
    def returncode(self) -> int:
        """0, or the first that is not."""
        return next((code for code in self.returncodes if code), 0)


def launch(
    command: list[Any],
    *,
    ranks: int | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
    apart: bool = False,
    imported: Literal["libraries", "package"] = "package",
) -> Done:
    """Runs a script (or `-m`, module; or `-c`, code) with arguments to its end, in `ranks` processes or a plain one.
    imported: what the processes begin with, torch and transformers alone or hybridlm too.

    Once a process failed, the others have two seconds before they are killed; `apart`: they are left alone. Raises
    TimeoutError, with what was printed, once `timeout` seconds are over; all are killed then.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "command": [str(part) for part in command],
            "ranks": ranks,
            "environment": os.environ | (env or {}),
            "folder": folder,
            "cwd": str(cwd or Path.cwd()),
            "timeout": timeout,
            "apart": apart,
            "imported": imported,
        }
        answer = _ask(json.dumps(request))
        said = ["".join(Path(folder, f"{kind}{n}").read_text() for n in range(ranks or 1)) for kind in ("out", "err")]
    done = Done(answer["codes"], *said)
    if answer["late"]:
        raise TimeoutError(f"{command} did not end within {timeout} s.\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


_server: subprocess.Popen | None = None


def _ask(line: str) -> dict[str, Any]:
    global _server
    if _server is None or _server.poll() is not None:
        plain = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
        path = os.pathsep.join(path for path in sys.path if path)
        _server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=plain | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_end, _server)
    assert _server.stdin is not None
    assert _server.stdout is not None
    _server.stdin.write(line + "\n")
    _server.stdin.flush()
    return json.loads(_server.stdout.readline())


def _end(server: subprocess.Popen) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait(10)


# From here on: the process that forks.


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    import torch._dynamo  # noqa: F401
    import transformers.generation
    import transformers.modeling_layers
    import transformers.pipelines  # noqa: F401

    package: tuple[TextIO, TextIO] | None = None
    for line in sys.stdin:
        if json.loads(line)["imported"] == "libraries":
            answers.write(_answer(line))
        else:
            package = package or _with_package()
            package[0].write(line)
            package[0].flush()
            answers.write(package[1].readline())
        answers.flush()
    if package:
        package[0].close()
        os.wait()


def _with_package() -> tuple[TextIO, TextIO]:
    """Forks the process that has imported hybridlm; to write requests to, and to read answers from."""
    (asked, ask), (said, say) = os.pipe(), os.pipe()
    if os.fork():
        os.close(asked)
        os.close(say)
        return os.fdopen(ask, "w"), os.fdopen(said)
    os.close(ask)
    os.close(said)
    os.dup2(asked, 0)
    code = 1
    try:
        import hybridlm.cli
        import hybridlm.evaluation.loading
        import hybridlm.training.loop  # noqa: F401

        gc.collect()
        gc.freeze()  # what is there now is looked through by no collection of a child, and its pages stay shared
        with os.fdopen(say, "w") as answers:
            for line in os.fdopen(asked):
                answers.write(_answer(line))
                answers.flush()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _answer(line: str) -> str:
    """Does what a request asks for."""
    request = json.loads(line)
    ranks = request["ranks"]
    port = _free_port() if ranks else 0
    children = [_fork(request, rank, port) for rank in range(ranks or 1)]
    codes, late = _wait(children, request["timeout"], request["apart"])
    return json.dumps({"codes": codes, "late": late}) + "\n"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(children: list[int], timeout: float, apart: bool) -> tuple[list[int], bool]:
    codes: dict[int, int] = {}
    until, late = time.monotonic() + timeout, False
    while len(codes) < len(children):
        for pid in children:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid] and not apart:
                        until = min(until, time.monotonic() + 2)
        if time.monotonic() > until:
            late = late or not any(codes.values())
            for pid in children:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in children], late


def _fork(request: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(request, rank, port)
        code = _run(request["command"])
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a pipe whose reader has gone
                code = code or 120
        os._exit(code)


def _become(request: dict[str, Any], rank: int, port: int) -> None:
    """Takes the request's environment, folder and streams."""
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(Path(request["folder"], f"{kind}{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["environment"])
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    if request["ranks"]:
        world = str(request["ranks"])
        values = (str(rank), str(rank), world, world, "127.0.0.1", str(port))
        os.environ.update(zip(_LAUNCHER, values, strict=True))
    os.chdir(request["cwd"])


def _run(command: list[str]) -> int:
    sys.argv = command[1:] if command[0] in ("-m", "-c") else command
    try:
        if command[0] == "-c":
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        elif command[0] == "-m":
            sys.modules.pop(command[1], None)  # imported already, but not run
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(command[0]).resolve().parent))
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0
        print(exit.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _serve()
