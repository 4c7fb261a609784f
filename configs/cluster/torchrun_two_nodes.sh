#!/usr/bin/env bash
# Two machines with eight GPUs each: start it on both, with the name of one of them, where torchrun's meeting point is:
#
#   HEAD=first-machine bash configs/cluster/torchrun_two_nodes.sh
#
# They meet by themselves (rendezvous c10d), in any order. --nnodes=1:2: where one machine is lost, the other goes on
# alone from the newest checkpoint, with eight processes instead of sixteen; when it is back and the script is started
# there again, both go on. (For exactly two machines: --nnodes=2.) Recipe, data and run folder lie on a file system that
# both share. Signals and exit codes as in torchrun_one_node.sh.
set -euo pipefail

recipe=${RECIPE:-configs/gpu16_1300m.yaml}

exec torchrun --nnodes=1:2 --nproc_per_node=8 --max-restarts=3 \
    --rdzv_backend=c10d --rdzv_id=gpu16 --rdzv_endpoint="${HEAD:?is the name of the machine to meet at}:29500" \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=600 \
    scripts/pretrain.py --config "$recipe" "$@"
