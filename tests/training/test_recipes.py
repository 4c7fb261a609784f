"""Every recipe that ships can be read, and its model built."""

from importlib import resources
from pathlib import Path

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.config import load_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_recipes():
    assert {"austen_rglru_bmru.yaml", "austen_lru_attention.yaml", "austen_cmru.yaml"} <= {
        path.name for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipe_is_read_and_its_model_built(path):
    config = load_config(path)
    assert config.run.name == path.stem
    with torch.device("meta"):
        model = HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=2048))
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000


def test_the_demo_recipe_is_in_the_package():
    path = resources.files("hybridlm.recipes") / "demo.yaml"
    config = load_config(str(path))
    assert config.data.prepare is not None
    assert "bmru" in HybridLMConfig(**config.model).block_types
