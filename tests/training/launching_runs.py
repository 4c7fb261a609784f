"""Several runs in one launch of several processes, and what they wrote."""

import json
from pathlib import Path
from typing import Any

from launching import Done, launch

from hybridlm.training.config import config_yaml
from hybridlm.training.metrics import read_rows
from hybridlm.training.sections import PretrainConfig

_SCRIPT = Path(__file__).with_name("many_runs.py")


def run_all(
    folder: Path,
    configs: list[PretrainConfig],
    ranks: int,
    stops: dict[str, int] | None = None,
    faults: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """`many_runs.py`; what each process wrote down, run by run. folder: a new one. stops, faults: by the run's name."""
    done = start(folder, configs, ranks, stops, faults)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def start(folder: Path, configs: list[PretrainConfig], ranks: int, stops=None, faults=None, **launching: Any) -> Done:
    """The same, for runs that do not come to their end."""
    folder.mkdir()
    runs = [
        {
            "name": config.run.name,
            "yaml": config_yaml(config),
            "precision": config.training.mixed_precision,
            "stop": (stops or {}).get(config.run.name),
            "fault": (faults or {}).get(config.run.name),
        }
        for config in configs
    ]
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    command = [_SCRIPT, folder / "runs.json", folder]
    return launch(command, ranks=ranks if ranks > 1 else None, **launching)


def rows_of(config: PretrainConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and validation rows."""
    rows = read_rows(config.run.path / "metrics.jsonl")
    return [row for row in rows if "lr" in row], [row for row in rows if "bits_per_byte" in row]


def data_of(facts: list[dict[str, Any]], name: str) -> list[list[list[int]]]:
    """The rows of token ids that each step of a run read, in any order."""
    steps = zip(*(fact[name]["ids"] for fact in facts), strict=True)
    return [sorted(row for rank in step for row in rank) for step in steps]
