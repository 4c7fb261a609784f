"""TensorBoard, wandb and trackio, through Accelerate's classes for them, as guests of a run.

A resumed run goes on in the tracker's run of before: RUN/tracker.json holds its id. Steps behind the checkpoint, which
are done again, stand there once: TensorBoard is told to forget them; the others, which cannot, get no row twice.

A tracker that fails (no login, network down, disk full) says so once and gets nothing more in this session. Training
goes on; the record is metrics.jsonl.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from hybridlm.errors import UserError
from hybridlm.files import replace_file
from hybridlm.training.metrics import each_row
from hybridlm.training.sections import PretrainConfig

FINISH_SECONDS = 60.0
"""How long the end of a run waits for a tracker to send what it still holds."""
FOLDER = "tensorboard"
"""RUN/tensorboard: the event files."""


class Trackers:
    """The trackers of `config.logging.trackers`, on the main process.

    done: steps behind. resumed: whether they were made in an earlier session of this run. `open` before the records of
    the run are cut off, as it reads how far they go.
    """

    def __init__(self, config: PretrainConfig, done: int, resumed: bool, log: Callable[[str], None]):
        self.config, self.done, self.resumed, self.log_line = config, done, resumed, log
        self._active: dict[str, GeneralTracker] = {}
        self._sent: dict[str, dict[str, int]] = {}

    def open(self, settings: dict[str, Any]) -> None:
        """Starts the trackers and hands them the settings of the run."""
        names = self.config.logging.trackers
        if not names:
            return
        known = _read_known(self._file) if self.resumed else None
        run_id, before = known or (uuid.uuid4().hex[:8], [])
        sent = _last_steps(self.config.run.path) if self.resumed else {}
        for name in names:
            self._sent[name] = sent if name in before and name != "tensorboard" else {}
            self._guard(name, lambda name=name: self._start(name, run_id, settings))
        try:
            known = {"id": run_id, "trackers": sorted({*before, *names})}
            replace_file(self._file, json.dumps(known) + "\n")
        except OSError as error:
            self.log_line(f"{self._file} cannot be written ({error.strerror}): a resumed run will be a new one there.")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """A row of `kind` (train, validation, sample) at `step`. Nested values get dotted names, missing ones go."""
        if not self._active:
            return
        row = {f"{kind}/{name}": value for name, value in _plain(values).items()}
        for name, tracker in list(self._active.items()):
            if step > self._sent[name].get(kind, -1):
                self._guard(name, lambda tracker=tracker: tracker.log(row, step=step))

    def close(self) -> None:
        """Lets every tracker send what it holds, for `FINISH_SECONDS` at most."""
        for name, tracker in list(self._active.items()):
            thread = threading.Thread(target=self._guard, args=(name, tracker.finish), daemon=True)
            thread.start()
            thread.join(FINISH_SECONDS)
            if thread.is_alive():
                self.log_line(f"tracker {name}: it could not send everything in {FINISH_SECONDS:.0f} seconds.")
        self._active.clear()

    @property
    def _file(self) -> Path:
        return self.config.run.path / "tracker.json"

    def _start(self, name: str, run_id: str, settings: dict[str, Any]) -> None:
        tracker = _make(name, self.config, run_id, self.done, self.resumed)
        tracker.start()
        self._active[name] = tracker
        # Each call for TensorBoard makes a run of its own beside the curves: one is enough.
        if name != "tensorboard" or not list((self.config.run.path / FOLDER).glob("*/hparams.yml")):
            tracker.store_init_configuration(settings)

    def _guard(self, name: str, action: Callable[[], Any]) -> None:
        """Runs `action`; if it fails, whatever the reason, the tracker is left out from now on."""
        try:
            action()
        except Exception as error:
            self._active.pop(name, None)
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            self.log_line(
                f"tracker {name}: {type(error).__name__}: {reason}. It gets no more of this session; "
                "training goes on, and metrics.jsonl has every row."
            )


def _make(name: str, config: PretrainConfig, run_id: str, done: int, resumed: bool) -> GeneralTracker:
    project, run = config.logging.project, config.run
    if name == "tensorboard":
        return TensorBoardTracker(FOLDER, run.path, purge_step=done + 1 if resumed else 0)
    if name == "wandb":
        return WandBTracker(project, id=run_id, name=run.name, dir=str(run.path), resume="allow")
    return TrackioTracker(project, name=f"{run.name}-{run_id}", resume="allow")


def _read_known(file: Path) -> tuple[str, list[str]] | None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return str(known["id"]), list(known["trackers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _last_steps(run: Path) -> dict[str, int]:
    """How far the records go, by kind of row: what trackers have been given, up to a row or two."""
    last: dict[str, int] = {}
    for file in (run / "metrics.jsonl", run / "samples.jsonl"):
        with suppress(OSError, UserError):  # not there, or damaged from some line on
            for row in each_row(file):
                kind = "sample" if "prompt" in row else "validation" if "bits_per_byte" in row else "train"
                if isinstance(row.get("step"), int):
                    last[kind] = max(last.get(kind, -1), row["step"])
    return last


def _plain(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and texts under dotted names."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            plain |= _plain(value, f"{prefix}{name}.")
        elif value is not None and name != "step":
            plain[f"{prefix}{name}"] = value
    return plain
