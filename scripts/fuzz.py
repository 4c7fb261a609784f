"""Many odd inputs: configurations, pattern strings, shards, states, recipes, command lines. Each must work or be
refused with one clear error; what does neither is printed with its traceback, and the exit code is 1.

    python scripts/fuzz.py                    10,000 inputs, always the same
    python scripts/fuzz.py --seed 7           others
    python scripts/fuzz.py --only "command lines" --inputs 2000
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fuzz"))


def main() -> int:
    from fuzzing import TARGETS, fuzz_all  # pyright: ignore[reportMissingImports]  # on the path since above

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="altogether (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="for other inputs")
    parser.add_argument("--only", choices=sorted(TARGETS), help="one target, with all inputs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz_all(Path(folder), options.inputs, options.seed, options.only)
    faults = sum(result.outcomes["faults"] for result in found)
    print(f"{sum(result.inputs for result in found):,} inputs, {faults:,} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
