"""Every recipe that ships can be read, its model built, and its run looked at."""

import shlex
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.cli import build_parser
from hybridlm.training.arrangement import arrangement
from hybridlm.training.config import load_config
from hybridlm.training.dryrun import dry_run
from hybridlm.training.dryrun_text import dry_run_text

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "compare")
"""Without studies, and what they train with, which the tests of comparisons read."""
SIZES = {
    "laptop_8m": 8.6e6, "gpu1_125m": 125e6, "gpu8_350m": 350e6, "gpu8_long_350m": 350e6, "gpu8_1300m": 1.3e9,
    "gpu8_1300m_fsdp": 1.3e9, "gpu16_1300m": 1.3e9,
}  # fmt: skip
"""Parameters of the name, embeddings included."""
PLACES = {
    name: ("cuda", int(name.removeprefix("gpu").partition("_")[0])) for name in SIZES if name.startswith("gpu")
} | {"laptop_8m": ("cpu", 1)}  # fmt: skip
"""Device and processes that a recipe is for; the others run on the CPU."""
MEMORY = dict.fromkeys(SIZES, 80000000000.0) | {"laptop_8m": 4e9, "gpu1_125m": 24e9}
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
    if path.stem == "gpu8_1300m_fsdp":
        assert f"{run.memory.total / 2**30:.0f} GiB at the peak of a step" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in SIZES], ids=lambda path: path.stem)
def test_the_commands_above_a_recipe_are_for_it(path):
    """Those of our own command and of torchrun, and how many processes they are for."""
    head = path.read_text(encoding="utf-8").partition("\nmodel:")[0].partition("\ndata:")[0]
    lines = [line.removeprefix("#   ").strip() for line in head.splitlines() if line.startswith("#   ")]
    assert any(line.startswith("hybridlm pretrain") for line in lines)
    for line in lines:
        program, *words = shlex.split(line.partition("      ")[0])
        processes = None
        if program == "torchrun":
            launcher = get_args_parser().parse_args(words)
            assert (ROOT / launcher.training_script).is_file()
            words, processes = ["pretrain", *launcher.training_script_args], int(launcher.nproc_per_node)
        elif program != "hybridlm":
            assert program == "bash" or program == "HEAD=first-machine"
            assert (ROOT / words[-1]).is_file()
            continue
        if words[0] == "pretrain":
            options = build_parser().parse_args(words)
            assert ROOT / options.config == path
            assert (processes or options.processes or 1) in (1, PLACES[path.stem][1])


def test_sharded_and_shared_recipes_say_what_they_are_for():
    one, two, long = (load_config(ROOT / "configs" / f"{name}.yaml") for name in (
        "gpu8_1300m_fsdp", "gpu16_1300m", "gpu8_long_350m",
    ))  # fmt: skip
    assert arrangement(one, 8) == "8 processes: fsdp over 8, 8 places that read rows"
    assert arrangement(two, 16) == "16 processes: fsdp over 8, 2 copies of the model, 16 places that read rows"
    assert arrangement(long, 8) == "8 processes: ddp, 1 place that reads rows, 8 processes share each sequence"


def test_the_demo_recipe_is_in_the_package():
    path = resources.files("hybridlm.recipes") / "demo.yaml"
    config = load_config(str(path))
    assert config.data.prepare is not None
    assert "bmru" in HybridLMConfig(**config.model).block_types
