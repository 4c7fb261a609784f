#!/bin/sh
# What a machine without a GPU leaves open: tests/ops on the device, then every kernel's time against the copy bandwidth.
#
#   scripts/gpu_check.sh              writes scripts/results/<device>.json
#   PYTHON=.venv/bin/python RESULTS=elsewhere.json scripts/gpu_check.sh
set -eu
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; } || PYTHON=python3

device=$("$PYTHON" scripts/gpu_check.py) || exit 1
RESULTS=${RESULTS:-scripts/results/$device.json}
mkdir -p "$(dirname "$RESULTS")"

echo "Tests of the scans on the device (the first run compiles every kernel, which takes minutes)"
HF_HUB_OFFLINE=1 "$PYTHON" -m pytest -q tests/ops

echo "Times and shares of the copy bandwidth, into $RESULTS"
"$PYTHON" scripts/bench_kernels.py --device cuda --out "$RESULTS"
