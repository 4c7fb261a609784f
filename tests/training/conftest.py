"""A tiny prepared data folder, and recipes for runs of a second."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.training.config import load_config
from hybridlm.training.sections import PretrainConfig

SENTENCE = "the sea was calm and a grey ship went slowly past our old house while she wrote one more letter to him"
WORDS = SENTENCE.split()


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


@pytest.fixture
def recipe(data_folder: Path, tmp_path: Path) -> Callable[..., PretrainConfig]:
    """`recipe("training.steps=3")`: a small run in tmp_path/runs, changed by overrides."""

    def make(*overrides: str) -> PretrainConfig:
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
            f"run={{name: test, folder: {tmp_path / 'runs'}}}",
        ]
        return load_config(None, [*base, *overrides])

    return make
