"""Memory of training, estimated by a dry run and measured in a real one: python scripts/bench_memory.py"""

import argparse
import json
import sys

import torch

from hybridlm.bench import memory, results
from hybridlm.errors import UserError
from hybridlm.files import replace_file


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Estimated and measured peak memory of three recipes, with and without gradient checkpointing; on "
        "the device that `hybridlm pretrain` would take."
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each run (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for a run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how well it fits")
    parser.add_argument("--out", metavar="FILE.json", help="default: in scripts/results/memory, with --quick in runs")
    options = parser.parse_args()
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = results.QUICK_FOLDER if options.quick else results.folder_of(__file__) / "memory"
        out = results.check_out(options.out or folder / f"memory_{device.type}.json")
        settings = {"command": results.command(__file__, sys.argv[1:]), "quick": options.quick, "steps": options.steps}
        measured = memory.measure(
            quick=options.quick,
            steps=options.steps,
            limit=options.limit,
            progress=lambda line: print(line, file=sys.stderr),
        )
        print(memory.table(measured))
        record = results.record("memory", device, settings, measured)
        replace_file(out, json.dumps(record, indent=1) + "\n")
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
