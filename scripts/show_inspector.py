"""A picture of the page of `hybridlm inspect`: python scripts/show_inspector.py CHECKPOINT --text FILE [--unit L.U]
[--token N] [--out PNG]"""

import argparse
import sys
import tempfile
from pathlib import Path

from hybridlm_command import Importing

with Importing("show_inspector.py"):
    from hybridlm.errors import UserError
    from hybridlm.evaluation.inspector.browser import needed_browser, screenshot
    from hybridlm.evaluation.inspector.inspection import inspect_checkpoint
    from hybridlm.evaluation.places import check_out


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs `hybridlm inspect` and takes a picture in headless Chromium.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--text", required=True, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=10_000, help="of the text (default: %(default)s)")
    parser.add_argument("--unit", metavar="LAYER.UNIT", help="the unit that colours the text (default: the page's)")
    parser.add_argument("--token", type=int, metavar="N", help="the token that is looked at (default: the page's)")
    parser.add_argument(
        "--height", type=int, default=900, metavar="PIXELS", help="of the picture (default: %(default)s)"
    )
    parser.add_argument("--out", default="inspector.png", metavar="PNG", help="default: %(default)s")
    options = parser.parse_args()
    try:
        needed_browser()
        out = check_out(options.out)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            choice = {name: getattr(options, name) for name in ("tokens", "unit", "token")}
            fragment = inspect_checkpoint(options.checkpoint, options.text, out=page, **choice)["fragment"]
            print(f"Picture: {screenshot(page, out, fragment=f'#{fragment}', height=options.height)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("show_inspector.py: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
