"""Training beside transformers' models of equal parameters: python scripts/bench_training.py [--precision fp32 bf16]"""

import argparse
import sys

import torch

from hybridlm.bench import results, training
from hybridlm.bench.peers import FAMILIES, QUICK, check_names, check_parameters
from hybridlm.bench.timing import ALLOCATORS, check_counts, check_device
from hybridlm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Tokens per second of forward, backward and AdamW, peak memory, and the share of what the rate of "
        "matrix products allows. Every model is a process of its own; their steps take turns."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), help=", ".join(FAMILIES))
    parser.add_argument("--precision", nargs="+", choices=tuple(training.PRECISIONS), default=["fp32"])
    parser.add_argument("--lengths", nargs="+", type=int, metavar="T", help="(default: 512 2048 8192 32768)")
    parser.add_argument("--tokens", type=int, help="of a step, at least (default: 8192)")
    parser.add_argument("--parameters", metavar="N", help="(default: 6e6)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, of which the median counts (default: 5)")
    parser.add_argument("--limit", type=float, default=training.LIMIT, help="seconds for a model's start, and rounds")
    parser.add_argument(
        "--allocator", choices=tuple(ALLOCATORS), default="kept",
        help="on a CPU, freed memory is kept, as `hybridlm pretrain` does (default), or left to the C library",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny models: whether it runs, not how fast")
    parser.add_argument("--out", metavar="FILE.json", help="default: in scripts/results, with --quick in runs/bench")
    options = parser.parse_args()
    try:
        device, names = check_device(options.device), check_names(options.models)
        check_counts(threads=options.threads)
        torch.set_num_threads(options.threads)
        variant = "_".join(options.precision)
        out = results.check_out(
            options.out or results.default_out(__file__, "training", options.device, variant, options.quick)
        )
        sizes = {**QUICK} if options.quick else {"parameters": 6_000_000}
        sizes |= {} if options.parameters is None else {"parameters": check_parameters(options.parameters)}
        sizes |= {"lengths": options.lengths or ((32, 128) if options.quick else training.LENGTHS)}
        tokens = (128 if options.quick else 8192) if options.tokens is None else options.tokens
        sizes |= {"tokens": tokens, "precisions": options.precision}
        sizes |= {"rounds": options.rounds, "limit": options.limit, "allocator": options.allocator}
        extra = {"apart": not options.quick, "side": 256 if options.quick else None}
        measured = training.measure(names, device, **sizes, **extra, progress=lambda line: print(line, file=sys.stderr))
        settings = {"command": results.command(__file__, sys.argv[1:]), "quick": options.quick, **sizes}
        print(training.table(measured))
        print(*results.keep(results.record("training", device, settings, measured), out), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
