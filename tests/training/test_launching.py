"""Launches that would not do what they seem to are refused, with the line to type instead."""

import os
import sys
from pathlib import Path

import pytest
from launching import Done, launch

from hybridlm.errors import UserError
from hybridlm.training.config import config_yaml
from hybridlm.training.dryrun import dry_run
from hybridlm.training.launching import check_launch
from hybridlm.training.session import accelerator_session

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"


@pytest.fixture
def accelerate_launch(monkeypatch):
    """The real launcher, forked from a process that has imported it; it starts the script anew."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "MASTER_"))]:
        monkeypatch.delenv(name)

    def start(*words: object, **variables: str) -> Done:
        paths = os.pathsep.join(path for path in sys.path if path)
        return launch(["-m", "accelerate.commands.launch", *words], env={"PYTHONPATH": paths, **variables})

    return start


@pytest.fixture
def path(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(config_yaml(recipe("training.steps=1")), encoding="utf-8")
    return path


def test_accelerate_that_starts_one_of_two_is_refused(accelerate_launch, path, tmp_path):
    """The real launcher; what it says to type is what test_processes.py runs."""
    done = accelerate_launch("--cpu", "--num_processes", "2", SCRIPT, "--config", path)
    assert done.returncode != 0
    assert "asked for several processes and started one" in done.stderr
    words = f"{SCRIPT} --config {path}"
    assert f"  torchrun --nproc_per_node 2 {words}\n" in done.stderr
    line = f"  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 {words}\n"
    assert line in done.stderr
    assert done.stderr.count("asked for several processes") == 1
    assert not (tmp_path / "runs").exists()


def test_accelerates_own_ways_to_share_a_model_are_refused(accelerate_launch, path, tmp_path):
    options = ("--use_fsdp", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no")
    done = accelerate_launch(*options, "--dynamo_backend", "no", SCRIPT, "--config", path, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "The launcher asks for FSDP (ACCELERATE_USE_FSDP=true)" in done.stderr
    assert f"torchrun --nproc_per_node 2 {SCRIPT} --config {path} parallel.kind=fsdp\n" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true", "WORLD_SIZE": "2"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "ACCELERATE_USE_FSDP": "true"}, "a parallelism config"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "srun started 2 processes"),
        ({"SLURM_PROCID": "3"}, "srun started 4 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "2"}, "mpirun started 2 processes"),
    ],
)
def test_what_other_launchers_set(environment, words):
    with pytest.raises(UserError, match=words) as caught:
        check_launch(environment)
    assert "torchrun --n" in str(caught.value)


@pytest.mark.parametrize("environment", [
    {},
    {"ACCELERATE_DYNAMO_BACKEND": "no"},  # accelerate launch, one process
    {"MASTER_ADDR": "here"},
    {"ACCELERATE_DYNAMO_BACKEND": "no", "MASTER_ADDR": "here", "WORLD_SIZE": "2"},
    {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the script of a batch job
    {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "WORLD_SIZE": "16"},  # srun torchrun
    {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
    {"ACCELERATE_USE_FSDP": "false"},
])  # fmt: skip
def test_launches_that_are_fine(environment):
    check_launch(environment)


def test_the_command_is_shown_as_a_launcher_takes_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hybridlm", "pretrain", "--config", "my recipe.yaml"])
    with pytest.raises(UserError, match=r"torchrun --nproc_per_node 2 scripts/pretrain\.py --config 'my recipe.yaml'"):
        check_launch({"OMPI_COMM_WORLD_SIZE": "2"})


def test_a_session_and_a_dry_run_look(recipe, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="mpirun"), accelerator_session(recipe()):
        pass
    with pytest.raises(UserError, match="mpirun"):
        dry_run(recipe())
    assert dry_run(recipe(), processes=2).processes == 2
