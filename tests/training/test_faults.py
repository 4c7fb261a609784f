"""What a disk can do to a run: be full, be full for a while, take no more writes."""

import contextlib
import errno
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from comparing import assert_same
from failing import crash_after

from hybridlm.errors import UserError
from hybridlm.training import loop
from hybridlm.training.checkpoints import STATE, checkpoints, damage
from hybridlm.training.guard import DivergedError
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import JsonLines, read_rows
from hybridlm.training.state import SaveError, saving


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def fill_up(disk: Path) -> Path:
    ballast = disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(bytes(2**12))
    return ballast


def test_rows_wait_for_room(small_disk):
    said = []
    path = small_disk / "metrics.jsonl"
    record, rows = JsonLines(path, report=said.append), [{"step": step, "text": "x" * 300} for step in range(60)]
    for row in rows[:10]:
        record.write(row)
    ballast = fill_up(small_disk)
    for row in rows[10:50]:
        record.write(row)
    assert len(said) == 1
    assert "metrics.jsonl cannot be written (No space left on device)" in said[0]
    with pytest.raises(OSError, match="No space left"):
        record.sync()
    on_disk = path.read_text(encoding="utf-8")
    assert on_disk.endswith("\n")
    assert [json.loads(line) for line in on_disk.splitlines()] == rows[: len(on_disk.splitlines())]
    ballast.unlink()
    for row in rows[50:]:
        record.write(row)
    record.sync()
    record.close()
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    "block",
    [
        *(b"\0" * 300 + b"\n", b"\xff\xfe\n", b'{"loss": 1.0}\n', b"[]\n"),
        *(b'{"step": null}\n', b'{"step": "a"}\n', b'{"step": 2.5}\n'),
    ],
)
def test_what_a_power_cut_left_behind_the_checkpoint_is_cut_off(tmp_path, block):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join([*lines[:3], block, lines[3]]))
    JsonLines(path, keep_until=2).close()
    assert read_rows(path) == rows[:2]
    path.write_bytes(b"".join([*lines[:1], block, *lines[1:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is no row of a record"):
        JsonLines(path, keep_until=2)


def test_a_best_model_that_could_not_be_written_is_not_claimed(recipe, monkeypatch, capsys):
    config = recipe("training.steps=6", "validation={every: 2, at_start: false, max_windows: 4}")
    write, refused = loop._Run._write, []

    def full_at_the_end(self, name, model):
        if name == "best" and self.done == 6:
            refused.append(self.watch.seen.best_step)
            raise SaveError("no room.")
        return write(self, name, model)

    monkeypatch.setattr(loop._Run, "_write", full_at_the_end)
    pretrain(config)
    assert refused == [6]  # it would have been the best
    best = json.loads((config.run.path / "best" / STATE / "state.json").read_text(encoding="utf-8"))
    newest = json.loads((checkpoints(config.run.path)[-1] / STATE / "state.json").read_text(encoding="utf-8"))
    assert newest["early_stopping"]["best_step"] == best["step"] == 4
    assert "The model that was best before" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["loss", "bits_per_byte_ema"])
def test_a_validation_that_is_not_finite(recipe, monkeypatch, key):
    found = loop.validate
    calls = []

    def broken(*args):
        calls.append(1)
        values = found(*args)
        bad = key == "loss" or len(calls) % 2 == 0
        return values | {"loss": float("nan"), "bits_per_byte": float("nan")} if bad and len(calls) > 2 else values

    monkeypatch.setattr(loop, "validate", broken)
    config = recipe("training.steps=6", "training.ema_decay=0.5", "validation.every=2", "checkpoint.every=2")
    with pytest.raises(DivergedError, match=r"Stopped after step 4 of 6: \w+ of the validation is nan.*step-00000002"):
        pretrain(config)
    report = json.loads((config.run.path / "diverged.json").read_text(encoding="utf-8"))
    assert (report["kind"], report["step"]) == ("validation", 4)
    assert report["tensor"] in (key, "bits_per_byte")  # whichever of the two stands first
    assert report["checkpoint"].endswith("step-00000002")


def test_a_full_disk_is_reported_and_loses_nothing(recipe, small_disk, monkeypatch, capsys):
    """The training goes on, its record in memory, and saves again once there is room."""
    whole = recipe("training.steps=12", "checkpoint={every: 2, keep: 1}", "run.name=whole")
    pretrain(whole)
    capsys.readouterr()
    config = recipe("training.steps=12", "checkpoint={every: 2, keep: 1}", f"run.folder={small_disk}")
    put = JsonLines.write
    seen = {}

    def put_and_fill(self, row):
        if row["step"] == 3:
            seen["ballast"] = fill_up(small_disk)
        if row["step"] == 9:
            seen["between"] = [path.name for path in checkpoints(config.run.path)]
            assert damage(checkpoints(config.run.path)[-1]) is None
            seen["ballast"].unlink()
        put(self, row)

    monkeypatch.setattr(JsonLines, "write", put_and_fill)
    pretrain(config)
    assert seen["between"] == ["step-00000002"]
    said = capsys.readouterr().out
    assert said.count("step-00000004 could not be written (No space left on device") == 1
    assert "The newest checkpoint is" in said
    assert_same(config.run.path, whole.run.path)


def test_a_disk_that_is_full_at_the_end(recipe, small_disk, monkeypatch):
    """Nothing is left half-written, and the same command finishes the run once there is room."""
    whole = recipe("training.steps=5", "checkpoint.every=2", "run.name=whole")
    pretrain(whole)
    config = recipe("training.steps=5", "checkpoint.every=2", f"run.folder={small_disk}")
    put = JsonLines.write
    with monkeypatch.context() as patch:
        patch.setattr(
            JsonLines, "write", lambda self, row: (fill_up(small_disk) if row["step"] == 5 else None, put(self, row))
        )
        with pytest.raises(SaveError, match=r"Stopped after step 5 of 5: .*No space left.*step-00000004; make room"):
            pretrain(config)
    names = sorted(path.name for path in (config.run.path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]
    assert not (config.run.path / "final").exists()
    (small_disk / "ballast").unlink()
    pretrain(config)
    assert_same(config.run.path, whole.run.path)


def test_what_helps_against_what_the_disk_refused(tmp_path):
    for number, remedy in (
        (errno.ENOSPC, "make room"),
        (errno.EROFS, f"make {tmp_path} a folder that can be written"),
        (errno.EIO, "put that right"),
    ):
        with pytest.raises(SaveError, match=r"final could not be written \(") as caught, saving(tmp_path / "final"):
            raise OSError(number, os.strerror(number))
        assert ("MiB are free" in str(caught.value)) == (number == errno.ENOSPC)
        assert pickle.loads(pickle.dumps(caught.value)).remedy == remedy  # other processes raise it too
    with pytest.raises(SaveError, match="MiB are free"), saving(tmp_path / "final"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_checkpoints_became_a_file(recipe, monkeypatch):
    """Room is not what is missing."""
    config = recipe("training.steps=3")
    put = JsonLines.write

    def put_and_block(self, row):
        put(self, row)
        if row["step"] == 2:
            (config.run.path / "checkpoints").write_text("x")

    monkeypatch.setattr(JsonLines, "write", put_and_block)
    with pytest.raises(
        SaveError, match=r"/checkpoints is a file.*There is none; make .*/checkpoints a folder that can be"
    ):
        pretrain(config)


def test_a_quota_on_files(recipe, monkeypatch):
    """Each kind of file that a run writes meets its limit in turn, in whatever library writes it."""
    settings = ("training.steps=6", "checkpoint.every=2")
    whole = recipe(*settings, "run.name=whole")
    pretrain(whole)
    newest, names = checkpoints(whole.run.path)[-1], ("model.safetensors", "tokenizer.json", "config.json")
    files = [newest / name for name in names] + [newest / STATE / name for name in ("optimizer.pt", "rng.pt")]
    before, refused = resource.getrlimit(resource.RLIMIT_FSIZE), []
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for path in [*files, newest / STATE / "state.json", whole.run.path / "metrics.jsonl"]:
            config = recipe(*settings, f"run.name=limit-{path.name}")
            crash_after(3, config, monkeypatch)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 1, before[1]))
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # pytest's own would meet the limit
                    pretrain(config)
            except UserError as error:
                refused.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert checkpoints(config.run.path)
            assert [damage(path) for path in checkpoints(config.run.path)] == [None] * len(checkpoints(config.run.path))
            pretrain(config)
            assert_same(config.run.path, whole.run.path)
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(refused) >= 5
    assert all("File too large" in message for message in refused)


def test_a_folder_that_became_read_only(recipe, small_disk, monkeypatch):
    """As when a disk reports errors and the system takes the right to write away: refused, and later gone on from."""
    settings = ("training.steps=6", "checkpoint.every=2")
    whole = recipe(*settings, "run.name=whole")
    pretrain(whole)
    config = recipe(*settings, f"run.folder={small_disk}")
    crash_after(3, config, monkeypatch)
    remount(small_disk, "ro")
    with pytest.raises(UserError, match=r"it cannot be written \(Read-only file system\)"):
        pretrain(config)
    remount(small_disk, "rw")
    pretrain(config)
    assert_same(config.run.path, whole.run.path)
