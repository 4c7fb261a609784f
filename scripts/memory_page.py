"""The results page of the memory suite from its records: python scripts/memory_page.py"""

import argparse
import sys
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.page import write_page
from hybridlm.evaluation.memory.store import Store

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Writes the page with all tables and pictures. What people write stands in PAGE_findings.md beside "
        "it, and is taken in as it is."
    )
    folder = ROOT / "scripts" / "results" / "memory_suite"
    parser.add_argument("--records", metavar="FOLDER", default=folder, help="of hybridlm memory-suite --out")
    parser.add_argument("--page", metavar="FILE.md", default=ROOT / "model_cards" / "memory_suite.md")
    options = parser.parse_args()
    try:
        page = Path(options.page)
        print(f"Written to {write_page(Store(options.records).records(), page, page.with_suffix(''))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
