"""Which mode of generation and training works with which recurrent model: python scripts/compare_modes.py"""

import argparse
import sys

from hybridlm.errors import UserError
from hybridlm.evaluation.between import write_between
from hybridlm.evaluation.modes_models import OTHERS, OURS
from hybridlm.evaluation.modes_table import BEGIN, END, render, run


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Runs small random models of hybridlm and of transformers through every mode; prints Markdown."
    )
    parser.add_argument("--write", metavar="PAGE", help="put the table between the two markers of this page instead")
    parser.add_argument("--ours", action="store_true", help="hybridlm's models alone")
    options = parser.parse_args()
    try:
        text = render(run(OURS if options.ours else OURS | OTHERS, lambda line: print(line, file=sys.stderr)))
        if options.write is None:
            print(text)
        else:
            write_between(options.write, text, BEGIN, END)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
