"""Launches that would not do what they seem to: found by the variables that launchers set, before anything is begun.

    accelerate launch --cpu --num_processes 2    starts one process, and says nothing
    srun -n 2, mpirun -n 2                       start two that know nothing of each other: two runs in one folder
    accelerate launch --use_fsdp, --use_deepspeed ask for what `parallel` says here

torchrun, and `accelerate launch --multi_gpu`, which calls it, set RANK and WORLD_SIZE; that is what a run goes by.
"""

import os
import shlex
import sys
from collections.abc import Mapping

from hybridlm.errors import UserError

_PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_FSDP": "FSDP",
}
"""What `accelerate launch` sets for its own ways to share a model, the special ones first."""
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Processes of Open MPI, of MPICH and Intel MPI, of MVAPICH."""


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError where the launcher did not start what it was asked for, or asks for another parallelism; it says
    what to type."""
    for variable, name in _PLUGINS.items():
        if environment.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"The launcher asks for {name} ({variable}={environment[variable]}). Here the recipe says how processes"
                " share a run: leave that option out, and set parallel.kind=fsdp to deal the model out over them.\n"
                + _lines("parallel.kind=fsdp")
            )
    if "WORLD_SIZE" in environment:
        return
    if "ACCELERATE_DYNAMO_BACKEND" in environment and "MASTER_ADDR" in environment:
        raise UserError(
            "accelerate launch was asked for several processes and started one: it does so with --cpu, and where there "
            f"are no GPUs.\n{_lines()}\nFor one process, leave --num_processes out."
        )
    # Not SLURM_NTASKS: the script of a batch job has it too, where one process runs.
    tasks = max(_number(environment, "SLURM_STEP_NUM_TASKS", 1), _number(environment, "SLURM_PROCID", 0) + 1)
    if tasks > 1:
        raise UserError(
            f"srun started {tasks} processes that know nothing of one another (there is no WORLD_SIZE): so many runs "
            "would begin in one folder. Let srun start one torchrun on each machine, and that the processes:\n"
            f"  srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node=N --rdzv_backend=c10d "
            f"--rdzv_id=$SLURM_JOB_ID --rdzv_endpoint=$(scontrol show hostnames | head -n 1):29500 {_script()}\n"
            "configs/cluster/slurm.sbatch is a whole job."
        )
    for variable in _MPI:
        if (count := _number(environment, variable, 1)) > 1:
            raise UserError(
                f"mpirun started {count} processes that know nothing of one another ({variable} is set, WORLD_SIZE is "
                f"not): so many runs would begin in one folder. Start one torchrun on each machine instead.\n{_lines()}"
            )


def _lines(*more: str) -> str:
    """What to type for two processes."""
    words = " ".join((_script(), *more))
    return (
        "On GPUs or CPUs, here with 2 processes:\n"
        f"  torchrun --nproc_per_node 2 {words}\n"
        "or, with Accelerate's launcher, on CPUs (on GPUs without the variable):\n"
        f"  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 {words}"
    )


def _script() -> str:
    """The command of this process as a launcher takes it."""
    program, *words = sys.argv
    if not program.endswith(".py"):  # the `hybridlm` command: its first word is `pretrain`
        program, words = "scripts/pretrain.py", words[1:]
    return shlex.join([program, *words])


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    given = environment.get(name, "")
    return int(given) if given.isdigit() else otherwise
