"""The results page of the memory suite, and its excerpt in the README, from records: python scripts/memory_page.py"""

import argparse
import sys
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.certificates import read_certificates
from hybridlm.evaluation.memory.excerpt import check_excerpt, write_excerpt
from hybridlm.evaluation.memory.page import write_page
from hybridlm.evaluation.memory.store import Store

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Writes the page with all tables and pictures. What people write stands in PAGE_findings.md beside "
        "it, and is taken in as it is."
    )
    folder = ROOT / "scripts" / "results" / "memory_suite"
    records_help = "of hybridlm memory-suite --out; files of hybridlm certify --out in certificates/ below it"
    parser.add_argument("--records", metavar="FOLDER", default=folder, help=records_help)
    parser.add_argument("--page", metavar="FILE.md", default=ROOT / "model_cards" / "memory_suite.md")
    parser.add_argument("--readme", metavar="FILE.md", help="put the excerpt between the two markers of this page too")
    options = parser.parse_args()
    try:
        page, records = Path(options.page), Store(options.records).records()
        if options.readme is not None:
            check_excerpt(options.readme)
        certificates = read_certificates(options.records)
        print(f"Written to {write_page(records, page, page.with_suffix(''), certificates)}")
        if options.readme is not None:
            write_excerpt(records, options.readme)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
