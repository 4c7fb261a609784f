"""Several processes on this machine, tokens per second, bytes sent and memory: python scripts/bench_scaling.py"""

import argparse
import sys

import torch

from hybridlm.bench import results, scaling
from hybridlm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Training in several processes that share a run in different ways.")
    kinds, counts = scaling.KINDS, (1, 2, 4)
    parser.add_argument(
        "--kinds", nargs="+", default=kinds, metavar="KIND", help=f"of {', '.join(kinds)}; default: all"
    )
    parser.add_argument("--processes", nargs="+", type=int, default=counts, metavar="N", help="default: 1 2 4")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of each run (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for a run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how well")
    parser.add_argument("--out", metavar="FILE.json", help="default: in scripts/results/scaling, with --quick in runs")
    options = parser.parse_args()
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = results.QUICK_FOLDER if options.quick else results.folder_of(__file__) / "scaling"
        out = results.check_out(options.out or folder / f"scaling_{device.type}.json")
        settings = {"command": results.command(__file__, sys.argv[1:]), "quick": options.quick, "steps": options.steps}
        measured = scaling.measure(
            kinds=options.kinds,
            processes=options.processes,
            steps=options.steps,
            limit=options.limit,
            quick=options.quick,
            progress=lambda line: print(line, file=sys.stderr),
        )
        print(scaling.table(measured))
        results.write(results.record("scaling", device, settings, measured), out)
        print(f"Results: {out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
