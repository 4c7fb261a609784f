"""Everything that a run shows and records while it goes on: metrics.jsonl, samples.jsonl, trackers, progress.

Every process has one; only the main process's writes.
"""

from typing import Any

from accelerate import Accelerator

from hybridlm.training.config import settings
from hybridlm.training.memory import flat_statistics
from hybridlm.training.metrics import JsonLines
from hybridlm.training.progress import RunProgress
from hybridlm.training.sections import PretrainConfig


class Journal:
    """`with Journal(...) as journal`. `done` steps are behind; rows of the records after them are cut off if the
    run resumes, all rows if not."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, done: int, total: int, resumed: bool):
        self.config, self.accelerator, self.total = config, accelerator, total
        main = accelerator.is_main_process
        keep_until = done if resumed else -1
        folder = config.run.path
        self._metrics = JsonLines(folder / "metrics.jsonl", keep_until) if main else None
        self._samples = (
            JsonLines(folder / "samples.jsonl", keep_until) if main and config.logging.samples.every else None
        )
        self._progress = RunProgress(done, total, visible=main, print_every=config.logging.every)
        if config.logging.trackers:
            accelerator.init_trackers(config.run.name, config=_flat(settings(config)))

    def __enter__(self) -> "Journal":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__()
        for record in (self._metrics, self._samples):
            if record is not None:
                record.close()

    def step(self, row: dict[str, Any], step_tokens: int, step_seconds: float) -> None:
        """A training row, and what the step took."""
        if self._metrics is not None:
            self._metrics.write(row)
        self._progress.update(row, step_tokens, step_seconds)
        if row["step"] % self.config.logging.every == 0 or row["step"] == self.total:
            self._track({name: value for name, value in row.items() if name != "memory"}, "train")
        if "memory" in row:
            self._track({"step": row["step"]} | flat_statistics(row["memory"]), "train/memory")

    def validation(self, row: dict[str, Any], all_windows: int) -> None:
        """A validation row; `all_windows` are in the whole split."""
        if self._metrics is not None:
            self._metrics.write(row)
        self._track(row, "validation")
        part = "" if row["windows"] == all_windows else f" on the first {row['windows']:,} of {all_windows:,} sequences"
        self.log(
            f"validation after step {row['step']}: {row['bits_per_byte']:.4f} bits per byte, {row['loss']:.4f} nats "
            f"per token{part}"
        )

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A text that the model wrote."""
        if self._samples is not None:
            self._samples.write({"step": step, "prompt": prompt, "text": text})
        self.log(f"sample after step {step}: {text}")

    def log(self, text: str) -> None:
        """A line for the reader."""
        self._progress.log(text)

    def sync(self) -> None:
        """Puts the records on the disk, before a checkpoint that counts on them."""
        for record in (self._metrics, self._samples):
            if record is not None:
                record.sync()

    def _track(self, row: dict[str, Any], split: str) -> None:
        if self.config.logging.trackers:
            values = {f"{split}/{name}": value for name, value in row.items() if name != "step" and value is not None}
            self.accelerator.log(values, step=row["step"])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, with values that every tracker takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
