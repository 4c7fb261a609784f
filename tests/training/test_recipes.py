"""Every recipe that ships can be read, its model built, and its run looked at."""

from importlib import resources
from pathlib import Path

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.config import load_config
from hybridlm.training.dryrun import dry_run
from hybridlm.training.dryrun_text import dry_run_text

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
SIZES = {"laptop_8m": 8.6e6, "gpu1_125m": 125e6, "gpu8_350m": 350e6, "gpu8_1300m": 1.3e9}
"""Parameters of the name, embeddings included."""
PLACES = {"laptop_8m": ("cpu", 1), "gpu1_125m": ("cuda", 1), "gpu8_350m": ("cuda", 8), "gpu8_1300m": ("cuda", 8)}
"""Device and processes that a recipe is for; the others run on the CPU."""
MEMORY = {"laptop_8m": 4e9, "gpu1_125m": 24e9, "gpu8_350m": 80e9, "gpu8_1300m": 80e9}
"""Bytes of such a device."""


def test_there_are_recipes():
    debug = {"austen_rglru_bmru", "austen_lru_attention", "austen_cmru"}
    assert debug | set(SIZES) <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipe_is_read_and_its_model_built(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert config.data.prepare is not None
    with torch.device("meta"):
        model = HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=config.data.prepare.vocab_size))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(SIZES.get(path.stem, count), rel=0.05)
    assert count > 100_000


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipe_is_dry_run_on_the_machine_that_it_is_for(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device, processes = PLACES.get(path.stem, ("cpu", 1))
    run = dry_run(load_config(path), device=device, processes=processes)
    assert list(tmp_path.iterdir()) == []
    assert run.steps is not None
    assert run.memory.total < MEMORY.get(path.stem, 2e9)
    assert f"{run.steps:,} steps" in dry_run_text(run)


def test_the_demo_recipe_is_in_the_package():
    path = resources.files("hybridlm.recipes") / "demo.yaml"
    config = load_config(str(path))
    assert config.data.prepare is not None
    assert "bmru" in HybridLMConfig(**config.model).block_types
