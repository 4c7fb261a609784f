"""A process that is lost ends the run: the others say so in one message each, in bounded time, and it can go on."""

import signal
from pathlib import Path

import pytest
import torch
from launching import launch

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import checkpoints, damage
from hybridlm.training.config import config_yaml
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.peers import LostPeerError, peers

SECONDS = 3.0
"""parallel.timeout."""
SLACK = 8.0
"""For a machine with other work to do."""


@pytest.fixture
def losing(recipe, tmp_path):
    """`losing(how, victim, ranks)`: the config, and what the processes said and when."""

    def run(how: str, victim: int, ranks: int):
        config = recipe(
            f"parallel.timeout={SECONDS / 60}", "checkpoint.every=1", "training.batch_size=6", "training.steps=5"
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(config_yaml(config), encoding="utf-8")
        script = Path(__file__).with_name("losing_peers.py")
        done = launch([script, how, victim, path, tmp_path], ranks=ranks, apart=True, timeout=60)
        lost = float((tmp_path / "lost").read_text(encoding="utf-8"))
        written = {rank: tmp_path / f"end{rank}" for rank in range(ranks)}
        ends = {rank: float(path.read_text()) - lost for rank, path in written.items() if path.exists()}
        return config, done, ends

    return run


@pytest.mark.parametrize(
    ("how", "victim", "ranks", "code", "newest"),
    [
        ("kill", 1, 3, -signal.SIGKILL, 2),
        ("save", 0, 2, -signal.SIGKILL, 1),
        ("raise", 2, 3, 1, 2),
        ("sleep", 1, 3, 7, 2),
        ("late", 1, 2, 7, 1),
    ],
)
def test_the_others_end_with_one_message(losing, how, victim, ranks, code, newest):
    config, done, ends = losing(how, victim, ranks)
    waits = how in ("sleep", "late")
    others = [rank for rank in range(ranks) if rank != victim]
    assert done.returncodes == [code if rank == victim else 2 for rank in range(ranks)], done.stderr[-4000:]
    assert sorted(ends) == others
    assert max(ends.values()) < SECONDS * waits + SLACK
    assert min(ends.values()) > SECONDS * waits - 1
    messages = [line for line in done.stderr.splitlines() if "of the run, which" in line]
    assert len(messages) == len(others)
    for rank, message in zip(others, messages, strict=True):
        assert f"Process {rank} of {ranks} " in message
        assert f"The newest checkpoint is {checkpoints(config.run.path)[-1]}; start the same command again" in message
    assert any("does not answer" in message for message in messages) == waits
    assert ("Rank 1 failed to pass monitoredBarrier" in messages[0]) == (how == "late")
    assert ("Traceback" in done.stderr) == (how == "raise")

    found = checkpoints(config.run.path)
    assert found[-1].name == f"step-{newest:08d}"
    assert [damage(path) for path in found] == [None] * len(found)
    if how in ("save", "kill"):  # and the run goes on, here in one process
        pretrain(config)
        steps = [row["step"] for row in read_rows(config.run.path / "metrics.jsonl") if "lr" in row]
        assert steps == [1, 2, 3, 4, 5]
        assert not list(config.run.path.glob("checkpoints/.*"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.distributed.DistStoreError("wait timeout after 1000ms, keys: /default_pg/0"), "does not answer"),
        (
            torch.distributed.DistStoreError("Timed out after 10 seconds waiting for clients. 1/2 clients joined."),
            "does not",
        ),
        (
            RuntimeError(
                "Rank 1 failed to pass monitoredBarrier in 1800000 ms\n Original exception: \n"
                "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
            ),
            "has ended",
        ),
        (
            RuntimeError(
                "Rank 1 failed to pass monitoredBarrier in 3000 ms\n Original exception: \n"
                "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation to complete"
            ),
            "does not answer",
        ),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), "has ended"),
        (torch.distributed.DistBackendError("NCCL error\nncclRemoteError: a remote process exited"), "has ended"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), "has ended"),
    ],
)
def test_what_torch_says_of_a_lost_peer_is_known(recipe, error, words):
    with pytest.raises(LostPeerError, match=words) as caught, peers(recipe()):
        raise error
    assert "There is no checkpoint yet; start the same command again to begin again." in str(caught.value)
    with pytest.raises(LostPeerError, match=words), peers(recipe()):  # noqa: PT012
        try:
            raise error
        finally:
            raise OSError("while cleaning up")


@pytest.mark.parametrize("error", [
    RuntimeError("DataLoader timed out after 3 seconds"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    torch.distributed.DistBackendError("ncclInvalidUsage: Duplicate GPU detected"),
    OSError("Connection reset by peer"),
    UserError("a gloo of the user timed out"),
    KeyboardInterrupt(),
])  # fmt: skip
def test_other_errors_pass(recipe, error):
    with pytest.raises(type(error)) as caught, peers(recipe()):
        raise error
    assert caught.value is error


ENDING = """
import os, signal, sys
from contextlib import contextmanager
from hybridlm.training.config import load_config
from hybridlm.training.peers import LostPeerError, peers

@contextmanager
def cleaning_up():
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(10000))  # where Python looks for signals

try:
    with peers(load_config(None, ["data.folder=x", "training.steps=1"])), cleaning_up():
        raise RuntimeError(sys.argv[1])
except LostPeerError as error:
    print(error)
"""


@pytest.mark.parametrize(("said", "code"), [("gloo: Connection closed by peer", 0), ("another", -signal.SIGTERM)])
def test_a_launcher_that_ends_the_others_leaves_them_their_message(said, code):
    done = launch(["-c", ENDING, said])
    assert done.returncode == code, done.stderr
    assert ("lost another process of the run" in done.stdout) == (code == 0)
