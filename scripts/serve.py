"""`transformers serve` for checkpoints of hybridlm: python scripts/serve.py CHECKPOINT [its options]"""

import sys

from hybridlm.errors import UserError
from hybridlm.release.serve import serve


def main() -> int:
    try:
        serve(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
