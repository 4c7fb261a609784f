"""A tiny prepared data folder, and recipes for runs of a second."""

import gc
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from comparing import rows_without_times
from safetensors.torch import load_file

from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.training.config import load_config
from hybridlm.training.journal import Journal
from hybridlm.training.loop import RunResult, pretrain
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.signals import RunInterrupted

SENTENCE = "the sea was calm and a grey ship went slowly past our old house while she wrote one more letter to him"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """A run ends with a full garbage collection, which takes a second or more once thousands of tests left their
    modules and caches in the process: what is there before a file of tests is not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    """Two documents of invented sentences, split by position, byte-level vocabulary with a few merges."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    paths = []
    for name in ("a.txt", "b.txt"):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))).capitalize() + "." for _ in range(300)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
        paths.append({"path": str(folder / name)})
    config = PrepareConfig(
        sources=paths, output=str(folder / "prepared"), vocab_size=300, validation={"by": "position", "share": 0.1}
    )
    return Path(prepare(config, log=lambda _: None))


@pytest.fixture(scope="session")
def make_recipe(data_folder: Path) -> Callable[..., PretrainConfig]:
    """`make_recipe(folder, "training.steps=3")`: a small run in folder/runs, changed by overrides."""

    def make(folder: Path, *overrides: str) -> PretrainConfig:
        base = [
            f"data.folder={data_folder}",
            "data.sequence_length=16",
            "training.steps=4",
            "training.batch_size=4",
            "model={pattern: rglru bmru, hidden_size: 16, num_attention_heads: 2}",
            "optimizer.lr=1e-2",
            "epsilon={hold: 0.2, zero: 0.6}",
            "validation={every: 0, at_start: false, max_windows: 4}",
            "checkpoint.every=0",
            f"run={{name: test, folder: {folder / 'runs'}}}",
        ]
        return load_config(None, [*base, *overrides])

    return make


@pytest.fixture
def recipe(make_recipe, tmp_path: Path) -> Callable[..., PretrainConfig]:
    """`recipe("training.steps=3")`: a small run in tmp_path/runs, changed by overrides."""
    return partial(make_recipe, tmp_path)


@pytest.fixture
def interrupted(monkeypatch) -> Callable[[PretrainConfig, int], None]:
    """`interrupted(config, step)`: trains up to and with that step, where Ctrl-C stops the run."""

    def run(config: PretrainConfig, step: int) -> None:
        write = Journal.step

        def step_and_signal(self, row, *args):
            write(self, row, *args)
            if row["step"] == step:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "step", step_and_signal)
            with pytest.raises(RunInterrupted):
                pretrain(config)
        torch.manual_seed(99)  # another process would start from other random numbers

    return run


@pytest.fixture
def same_weights() -> Callable[[Path, Path], bool]:
    """Whether two checkpoint folders hold the same bits."""

    def compare(one: Path, two: Path) -> bool:
        left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    return compare


@pytest.fixture
def same_run(same_weights) -> Callable[..., bool]:
    """Whether two runs wrote the same rows, but for their times, and the same weights in `final` and other folders."""

    def compare(one: RunResult, two: RunResult, *folders: str) -> bool:
        pairs = [(one.run_folder / name, two.run_folder / name) for name in ("final", *folders)]
        rows = [rows_without_times(result.metrics) for result in (one, two)]
        return rows[0] == rows[1] and all(same_weights(*pair) for pair in pairs)

    return compare
