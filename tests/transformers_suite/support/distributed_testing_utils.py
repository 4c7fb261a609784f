"""Starts the ranks of transformers' distributed tests, on the CPU over gloo. Stands in for the file of this name that
the source archive leaves out."""

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait

import torch

_TIMEOUT = 240  # seconds
# Imported once, by the process that the ranks are forked from.
_PRELOAD = [
    "hybridlm",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.distributed.fsdp",
    "transformers.models.auto.modeling_auto",
    "transformers.testing_utils",
]


def _get_distributed_backend() -> str:
    return "gloo"


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    """A rank on a CPU has no device of its own."""


def _rank(function, rank: int, args: tuple) -> None:
    function(rank, *args)
    # The work is done and the process group destroyed. An ordinary exit would still tear the interpreter down below
    # gloo's threads; a rank was once seen to abort there. Whatever goes wrong before this line fails the test.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _start_rank_processes(function, args: tuple, nprocs: int) -> None:
    """Calls function(rank, *args) in `nprocs` processes. RuntimeError, and no rank left, if one fails or hangs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    ranks = [context.Process(target=_rank, args=(function, rank, args)) for rank in range(nprocs)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + _TIMEOUT
    running = set(ranks)
    try:
        while running:
            sentinels = [process.sentinel for process in running]
            if not wait(sentinels, timeout=max(0, deadline - time.monotonic())):
                raise RuntimeError(f"{len(running)} of {nprocs} ranks still ran after {_TIMEOUT} s.")
            for process in [process for process in running if process.exitcode is not None]:
                running.discard(process)
                if process.exitcode:
                    raise RuntimeError(f"Rank {ranks.index(process)} of {nprocs} ended with {process.exitcode}.")
    finally:
        for process in running:
            process.kill()
            process.join()
