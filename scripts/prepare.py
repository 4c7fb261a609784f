"""Preparation of a data folder: `python scripts/prepare.py --help`. The same as `hybridlm prepare`."""

import sys

from hybridlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
