"""One sequence of a million tokens on four processes: torchrun --nproc_per_node 4 scripts/train_million.py"""

import argparse
import sys

import torch

from hybridlm.bench import results, sequence
from hybridlm.errors import UserError

CHECKPOINTING = {"yes": (True,), "no": (False,), "both": (False, True)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A few training steps on one document of so many tokens, a part of which each process of torchrun "
        "has: memory and seconds of each, loss and gradient norm. At a shorter length also one process alone."
    )
    parser.add_argument("--length", type=int, default=2**20, metavar="T", help="tokens (default: %(default)s)")
    parser.add_argument(
        "--compare", type=int, default=2**16, metavar="T", help="tokens beside one process; 0: none (default: 65536)"
    )
    parser.add_argument("--pattern", default=sequence.Case.pattern, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=sequence.Case.width, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=sequence.Case.steps, help="(default: %(default)s)")
    parser.add_argument(
        "--checkpointing", choices=tuple(CHECKPOINTING), default="yes", help="of gradients (default: yes)"
    )
    parser.add_argument("--json", metavar="FILE.json", help="where the results go; they are printed in any case")
    options = parser.parse_args()
    try:
        out = None if options.json is None else results.check_out(options.json)
        with sequence.processes() as ranks:
            main_process = ranks is None or ranks.rank == 0
            measured = sequence.measure(
                options.length,
                ranks,
                compare=options.compare or None,
                checkpointing=CHECKPOINTING[options.checkpointing],
                pattern=options.pattern,
                width=options.width,
                steps=options.steps,
                progress=lambda line: print(line, file=sys.stderr),
            )
            if main_process:
                print(sequence.table(measured))
            if main_process and out is not None:
                settings = {"command": results.command(__file__, sys.argv[1:], 1 if ranks is None else ranks.size)}
                results.write(results.record("sequence", torch.device("cpu"), settings, measured), out)
                print(f"Results: {out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
