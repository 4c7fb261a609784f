"""Arithmetic of 8, 64 and 1,024 GPUs: python scripts/scaling_arithmetic.py --write docs/scaling.md"""

import argparse
import sys
from pathlib import Path

from hybridlm.bench import arithmetic
from hybridlm.errors import UserError

RECIPE = Path(__file__).parents[1] / "configs" / "gpu8_1300m.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time, bytes and memory of a training step, from named assumptions.")
    parser.add_argument("--recipe", default=RECIPE, metavar="RECIPE", help="default: configs/gpu8_1300m.yaml")
    parser.add_argument("--write", metavar="PAGE", help="put it between the two markers of this page instead")
    options = parser.parse_args()
    try:
        if options.write is None:
            print(arithmetic.page(options.recipe))
        else:
            arithmetic.write(options.write, options.recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
