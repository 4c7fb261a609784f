"""Text from a checkpoint: `python scripts/generate.py --help`. The same as `hybridlm generate`."""

import sys

from hybridlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
