"""Everything that a run shows and records while it goes on: metrics.jsonl, samples.jsonl, trackers, progress.

Every process has one; only the main process's writes.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hybridlm.training.config import settings
from hybridlm.training.memory import flat_statistics
from hybridlm.training.metrics import JsonLines, missing_steps
from hybridlm.training.output import Hangup
from hybridlm.training.pace import Pace
from hybridlm.training.progress import RunProgress
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.session import on_main
from hybridlm.training.state import TrainingState
from hybridlm.training.trackers import Trackers


class Journal:
    """`with Journal(...) as journal`. `resumed` is what the run goes on from, of `total` steps: rows of the records
    after it are cut off; all rows, where it is None. Every process makes it at once, and raises the UserError of a
    record that cannot be read or written, which the main process alone finds out."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, total: int, resumed: TrainingState | None):
        self.config, self.accelerator, self.total = config, accelerator, total
        done = 0 if resumed is None else resumed.step
        main, samples = accelerator.is_main_process, config.logging.samples
        self._progress = RunProgress(done, total, visible=main, print_every=config.logging.every)
        self._trackers: Trackers | None = None
        self._metrics: JsonLines | None = None
        self._samples: JsonLines | None = None
        pauses = {"validation": config.validation.every, "samples": samples.every}
        self._pace = Pace(done, total, pauses | {"checkpoint": config.checkpoint.every})
        self._hangup, self._hangup_said = Hangup(), False
        on_main(accelerator, lambda: self._open(done, resumed))

    def _open(self, done: int, resumed: TrainingState | None) -> None:
        """On the main process: trackers, then the records, whose rows of before trackers want to see."""
        folder, keep_until = self.config.run.path, -1 if resumed is None else done
        again = resumed is not None and resumed.validation_due  # a session before may have come to its end, and died
        with ExitStack() as opened:
            self._trackers = Trackers(self.config, done, resumed is not None, self.log)
            opened.callback(self._trackers.close)
            self._trackers.open(_flat(settings(self.config)))
            self._metrics = JsonLines(folder / "metrics.jsonl", keep_until, self.log, again)
            opened.callback(self._metrics.close)
            self._say_what_is_missing(folder / "metrics.jsonl", done)
            if self.config.logging.samples.every:
                self._samples = JsonLines(folder / "samples.jsonl", keep_until - again, self.log)
            opened.pop_all()  # nothing failed: they stay open

    def _say_what_is_missing(self, metrics: Path, done: int) -> None:
        """Rows were on the disk before their checkpoint was: somebody, or a copy that was cut short, removed them."""
        missing = missing_steps(metrics, done)
        if missing:
            rows = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in missing[:3])
            count = sum(last - first + 1 for first, last in missing)
            rows += f" and others, {count:,} in all," if missing[3:] else ""
            are = "Row {} is" if count == 1 else "Rows {} are"
            self.log(f"{are.format(rows)} missing from {metrics}; the run goes on without.")

    def __enter__(self) -> "Journal":
        self._hangup.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__()
        if self._trackers is not None:
            self._trackers.close()
        for record in (self._metrics, self._samples):
            if record is not None:
                record.close()
        self._hangup.__exit__()

    def step(self, row: dict[str, Any], step_tokens: int, step_seconds: float) -> None:
        """A training row, and what the step took. The rate over real time is added to the row."""
        self._pace.step(row["step"], step_tokens, step_seconds)
        row = row | {"real_tokens_per_second": self._pace.real_rate}
        if self._metrics is not None:
            self._metrics.write(row)
        if self._hangup.signalled and not self._hangup_said:
            self._hangup_said = True
            self.log("SIGHUP: the terminal has gone; the run goes on without it.")
        self._progress.update(row, self._pace)
        if row["step"] % self.config.logging.every == 0 or row["step"] == self.total or "memory" in row:
            memory = flat_statistics(row.get("memory", []))
            plain = {name: value for name, value in row.items() if name != "memory"}
            self._track("train", plain | {f"memory/{name}": value for name, value in memory.items()})

    def validation(self, row: dict[str, Any], all_windows: int) -> None:
        """A validation row; `all_windows` are in the whole split."""
        if self._metrics is not None:
            self._metrics.write(row)
        self._track("validation", row)
        part = "" if row["windows"] == all_windows else f" on the first {row['windows']:,} of {all_windows:,} sequences"
        average = f", averaged weights {row['bits_per_byte_ema']:.4f}" if "bits_per_byte_ema" in row else ""
        self.log(
            f"validation after step {row['step']}: {row['bits_per_byte']:.4f} bits per byte{average}, "
            f"{row['loss']:.4f} nats per token{part}"
        )

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A text that the model wrote."""
        if self._samples is not None:
            self._samples.write({"step": step, "prompt": prompt, "text": text})
        self._track("sample", {"step": step, prompt or "(start of a document)": text})
        self.log(f"sample after step {step}: {text}")

    def log(self, text: str) -> None:
        """A line for the reader."""
        self._progress.log(text)

    def sync(self) -> None:
        """Puts the records on the disk, before a checkpoint that counts on them."""
        for record in (self._metrics, self._samples):
            if record is not None:
                record.sync()

    def _track(self, kind: str, row: dict[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.log(kind, row["step"], row)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, with values that every tracker takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
