"""Where the time of a training step on a CPU goes, with and without the kernels: python scripts/profile_training.py"""

import argparse
import sys

import torch

from hybridlm.bench import profiles
from hybridlm.bench.paths import check_free
from hybridlm.bench.peers import OURS, QUICK, check_ours, fit
from hybridlm.bench.timing import check_counts
from hybridlm.bench.training import check_lengths
from hybridlm.errors import UserError

WAYS = {
    "kernels, memory kept": {},
    "kernels": {"allocator": "system"},
    "pure PyTorch": {"path": "torch", "allocator": "system"},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Milliseconds of forward, backward and AdamW in fp32 by what they are for: as `hybridlm pretrain` "
        "runs, without keeping freed memory, and without compiled kernels."
    )
    parser.add_argument("--model", default="rglru bmru", help=", ".join(OURS))
    parser.add_argument("--length", type=int, default=2048, metavar="T")
    parser.add_argument("--rows", type=int, default=4, metavar="B")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how fast")
    options = parser.parse_args()
    try:
        check_free()
        name = check_ours(options.model)
        check_counts(threads=options.threads, rows=options.rows)
        check_lengths([options.length])
        torch.set_num_threads(options.threads)
        sizes = QUICK if options.quick else {"parameters": 6_000_000}
        size = fit(name, **{"width": 256, "vocabulary": 4096, **sizes})
        columns = {}
        for number, (way, settings) in enumerate(WAYS.items(), 1):
            print(f"{number} of {len(WAYS)}: {way}", file=sys.stderr)
            columns[way] = profiles.by_kind(size, options.length, options.rows, **settings)
        print(profiles.table(columns))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
