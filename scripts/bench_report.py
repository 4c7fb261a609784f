"""What the three benchmarks measured, as a section of a page:

python scripts/bench_report.py --write docs/performance.md
"""

import argparse
import sys
from pathlib import Path

from hybridlm.bench import page
from hybridlm.bench.results import folder_of
from hybridlm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Prints Markdown from all results in a folder, and draws their pictures."
    )
    parser.add_argument(
        "--results", default=folder_of(__file__), type=Path, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--write", metavar="PAGE", help="put it between the two markers of this page instead")
    options = parser.parse_args()
    try:
        if options.write is None:
            print(page.section(page.read(options.results)))
        else:
            page.write(options.write, options.results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
