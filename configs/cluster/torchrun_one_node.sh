#!/usr/bin/env bash
# One machine with eight GPUs. Fields of the recipe may follow: torchrun_one_node.sh training.steps=100
#
# A process that crashes ends the others; torchrun starts all of them again, up to three times, and the run goes on from
# its newest checkpoint. SIGTERM, Ctrl-C and SIGUSR1 reach the processes, which finish the step and save a checkpoint;
# they have ten minutes for it. torchrun's exit code is 0 where the run is finished, and 1 where it is not.
set -euo pipefail

recipe=${RECIPE:-configs/gpu8_1300m_fsdp.yaml}

exec torchrun --standalone --nproc_per_node=8 --max-restarts=3 \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=600 \
    scripts/pretrain.py --config "$recipe" "$@"
