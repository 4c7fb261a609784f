#!/usr/bin/env bash
# One machine with eight GPUs that may be taken away at any time, with SIGTERM half a minute ahead or with nothing: let
# its manager start this script whenever the machine is there. The run folder lies on a disk that stays.
#
# A checkpoint every 50 steps bounds what is lost where no signal comes. Killed at any moment, the folder is sound.
#
# Exit codes: 0 the run is finished; 143 stopped by SIGTERM, its checkpoint is on the disk; 1 three starts in a row made
# no new checkpoint, so that something else is wrong and another start would not help.
set -uo pipefail

recipe=${RECIPE:-configs/gpu8_1300m_fsdp.yaml}
run=runs/$(basename "$recipe" .yaml)

newest() { find "$run/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1; }

stopped=0 child=
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM

fruitless=0
while [ ! -d "$run/final" ]; do
    [ "$stopped" = 1 ] && exit 143
    before=$(newest)
    torchrun --standalone --nproc_per_node=8 \
        --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=25 \
        scripts/pretrain.py --config "$recipe" checkpoint.every=50 "$@" &
    child=$!
    wait "$child"
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    child=
    if [ "$(newest)" = "$before" ]; then fruitless=$((fruitless + 1)); else fruitless=0; fi
    [ "$fruitless" -ge 3 ] && [ ! -d "$run/final" ] && [ "$stopped" = 0 ] && exit 1
done
exit 0
