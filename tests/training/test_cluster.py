"""The launch scripts for clusters, run with stand-ins for torchrun and SLURM's commands that note what they are given.

What they start is parsed by torchrun's own parser and by ours, and so many processes must go with its recipe (which
test_recipes.py looks at).
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

from hybridlm.cli import build_parser
from hybridlm.training.arrangement import arrangement
from hybridlm.training.config import load_config
from hybridlm.training.setup import micro_batch_size

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "configs" / "cluster").iterdir())
STAND_INS = {
    "torchrun": """
        printf '%s\\n' "$@" > "$NOTES/torchrun.$(ls "$NOTES" | grep -c torchrun)"
        case $DOES in
            finish) mkdir -p "$RUN/final" ;;
            fail) exit 1 ;;
            stop)
                trap 'mkdir -p "$RUN/checkpoints/step-00000007"; exit 1' USR1 TERM
                echo $$ > "$NOTES/pid"
                for _ in $(seq 600); do sleep 0.05; done ;;
        esac""",
    "srun": """
        while case $1 in --*) true ;; *) false ;; esac; do echo "$1" >> "$NOTES/srun"; shift; done
        exec "$@" """,
    "scontrol": """
        if [ "$1" = requeue ]; then echo "$2" > "$NOTES/requeued"; else printf 'first\\nsecond\\n'; fi""",
    "scancel": """
        [ "$1 $2" = "--signal=USR1 77" ] && kill -USR1 "$(cat "$NOTES/pid")" """,
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(script, does, *words)`: the script begun in an empty folder, whose run would be in runs/NAME."""
    monkeypatch.chdir(tmp_path)
    for folder in ("bin", "notes"):
        (tmp_path / folder).mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def begin(script: Path, does: str, *words: str, **more: str) -> subprocess.Popen:
        name = "gpu16_1300m" if script.name in ("slurm.sbatch", "torchrun_two_nodes.sh") else "gpu8_1300m_fsdp"
        values = {"NOTES": "notes", "DOES": does, "RUN": f"runs/{name}", "HEAD": "first", "SLURM_JOB_ID": "77"}
        values |= {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        return subprocess.Popen(["bash", str(script), *words], env=os.environ | values | more)

    return begin


def started() -> list[list[str]]:
    """What each torchrun was given."""
    return [path.read_text().splitlines() for path in sorted(Path("notes").glob("torchrun.*"))]


def wait_for(path: str) -> None:
    until = time.monotonic() + 30
    while not (Path(path).is_file() and Path(path).read_text()):
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def test_there_are_scripts():
    assert [path.name for path in SCRIPTS] == [
        "preemptible.sh", "slurm.sbatch", "torchrun_one_node.sh", "torchrun_two_nodes.sh",
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_starts_is_understood(start, script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert start(script, "finish", "training.seed=5").wait(30) == 0
    (words,) = started()
    launcher = get_args_parser().parse_args(words)
    nodes = parse_min_max_nnodes(launcher.nnodes)[1]
    assert launcher.training_script == "scripts/pretrain.py"
    assert (ROOT / launcher.training_script).is_file()
    assert launcher.signals_to_handle == "SIGTERM,SIGINT,SIGUSR1"
    assert launcher.shutdown_timeout >= 25
    assert launcher.standalone == (nodes == 1)
    if nodes > 1:
        assert (launcher.rdzv_backend, launcher.rdzv_endpoint) == ("c10d", "first:29500")
    options = build_parser().parse_args(["pretrain", *launcher.training_script_args])
    config = load_config(ROOT / options.config, options.overrides)
    assert config.training.seed == 5
    processes = nodes * int(launcher.nproc_per_node)
    assert processes == (16 if nodes == 2 else 8)
    assert micro_batch_size(config, processes) == 4
    assert arrangement(config, processes).startswith(f"{processes} processes: fsdp over 8")
    if launcher.nnodes == "1:2":  # one machine may go on alone
        assert micro_batch_size(config, 8) == 4


def test_another_recipe_can_be_named(start):
    script = ROOT / "configs" / "cluster" / "torchrun_one_node.sh"
    assert start(script, "finish", RECIPE="configs/gpu8_350m.yaml").wait(30) == 0
    assert started()[0][-1] == "configs/gpu8_350m.yaml"
    two = ROOT / "configs" / "cluster" / "torchrun_two_nodes.sh"
    assert start(two, "finish", HEAD="").wait(30) != 0
    assert len(started()) == 1


def test_a_slurm_job_that_is_finished_or_fails_ends(start):
    script = ROOT / "configs" / "cluster" / "slurm.sbatch"
    assert start(script, "fail").wait(30) == 1
    assert start(script, "finish").wait(30) == 0
    assert not Path("notes/requeued").exists()
    assert Path("notes/srun").read_text().splitlines() == ["--ntasks-per-node=1"] * 2
    assert "#SBATCH --signal=B:USR1@900" in script.read_text()


def test_a_slurm_job_whose_time_is_over_is_requeued(start):
    job = start(ROOT / "configs" / "cluster" / "slurm.sbatch", "stop")
    wait_for("notes/pid")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert Path("notes/requeued").read_text() == "77\n"
    assert Path("runs/gpu16_1300m/checkpoints/step-00000007").is_dir()


def test_a_machine_that_is_taken_away_saves_first(start):
    script = ROOT / "configs" / "cluster" / "preemptible.sh"
    job = start(script, "stop")
    wait_for("notes/pid")
    job.terminate()
    assert job.wait(30) == 143
    assert Path("runs/gpu8_1300m_fsdp/checkpoints/step-00000007").is_dir()
    assert start(script, "fail").wait(30) == 1
    assert len(started()) == 1 + 3
    assert start(script, "finish").wait(30) == 0
