"""Pretraining, for launchers: `accelerate launch scripts/pretrain.py --config RECIPE`, `torchrun --nproc_per_node 2
scripts/pretrain.py ...`.

The same as `hybridlm pretrain`.
"""

import sys

from hybridlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
