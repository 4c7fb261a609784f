"""Bits per byte of a text: `python scripts/evaluate.py --help`. The same as `hybridlm evaluate`."""

import sys

from hybridlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
