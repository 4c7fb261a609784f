"""Prints and draws what a `bmru` and an `lru` state keep over blank steps: python scripts/show_persistence.py [--steps
N] [--out PNG]"""

import argparse
import sys

from hybridlm_command import Importing

with Importing("show_persistence.py"):
    from hybridlm.errors import UserError
    from hybridlm.evaluation.persistence import persistence, picture, table
    from hybridlm.evaluation.plots import NoMatplotlibError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="What is left of a bmru and of an lru state after blank steps, in bf16."
    )
    parser.add_argument("--steps", type=int, default=1_000_000, help="blank steps (default: a million)")
    parser.add_argument("--width", type=int, default=64, help="units of each cell (default: 64)")
    parser.add_argument("--out", default="runs/persistence.png", metavar="PNG", help="where the picture goes")
    options = parser.parse_args()
    try:
        rows = persistence(options.steps, options.width)
        print(table(rows))
        print(f"Picture: {picture(rows, options.out)}")
    except NoMatplotlibError as error:  # the table is worth having without its picture
        print(f"No picture: {error}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("show_persistence.py: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
