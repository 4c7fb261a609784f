"""What two equal runs have in common; checkpoints that a test changed."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from hybridlm.training.checkpoints import CHECKSUMS, STATE, checkpoints, write_sealed
from hybridlm.training.metrics import read_rows

TIMES = ("seconds", "tokens_per_second", "real_tokens_per_second")


def rows_without_times(metrics: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_rows(metrics)]


def results(run: Path) -> tuple[list[dict], dict[str, torch.Tensor], dict]:
    """All that two equal runs have in common: rows, weights, the newest optimizer state."""
    rows = rows_without_times(run / "metrics.jsonl")
    optimizer = torch.load(checkpoints(run)[-1] / STATE / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    return rows, load_file(run / "final" / "model.safetensors"), optimizer


def assert_same(run: Path, other: Path) -> None:
    (rows, weights, optimizer), (rows_2, weights_2, optimizer_2) = results(run), results(other)
    assert rows == rows_2
    assert weights.keys() == weights_2.keys()
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    for name in ("best", "final-ema"):
        both = [folder / name / "model.safetensors" for folder in (run, other)]
        assert both[0].exists() == both[1].exists()
        if both[0].exists():
            one, two = map(load_file, both)
            assert all(torch.equal(one[key], two[key]) for key in one | two)
    assert optimizer.keys() == optimizer_2.keys()
    for key, entries in optimizer.items():
        assert all(torch.equal(entries[name], optimizer_2[key][name]) for name in entries)


def seal(folder: Path) -> None:
    """New checksums over what a test changed."""
    copy = shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns(CHECKSUMS))
    write_sealed(folder, lambda target: shutil.copytree(copy, target, dirs_exist_ok=True))
    shutil.rmtree(copy)
