"""Generation beside transformers' models of equal parameters: python scripts/bench_generation.py [--positions P]"""

import argparse
import sys
from typing import Any

import torch

from hybridlm.bench import generation, results
from hybridlm.bench.peers import FAMILIES, QUICK, check_names, check_parameters
from hybridlm.bench.timing import check_counts, check_device
from hybridlm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Tokens per second of greedy decoding from the cached state at positions of a long text, "
        "memory, and what a layer costs beyond its products. Every model is a process of its own; they take turns."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), help=", ".join(FAMILIES))
    parser.add_argument("--positions", nargs="+", type=int, metavar="P", help="(default: 16 512 2048 8192 32768)")
    parser.add_argument("--tokens", type=int, help="written each time (default: 32)")
    parser.add_argument("--parameters", metavar="N", help="(default: 6e6)")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, of which the median counts (default: 5)")
    parser.add_argument("--limit", type=float, default=generation.LIMIT, help="seconds for a model's start, and rounds")
    parser.add_argument("--quick", action="store_true", help="tiny models: whether it runs, not how fast")
    parser.add_argument("--out", metavar="FILE.json", help="default: in scripts/results, with --quick in runs/bench")
    options = parser.parse_args()
    try:
        device, names = check_device(options.device), check_names(options.models)
        check_counts(threads=options.threads)
        torch.set_num_threads(options.threads)
        out = results.check_out(
            options.out or results.default_out(__file__, "generation", options.device, "fp32", options.quick)
        )
        sizes: dict[str, Any] = {**QUICK} if options.quick else {"parameters": 6_000_000}
        sizes |= {} if options.parameters is None else {"parameters": check_parameters(options.parameters)}
        sizes |= {"positions": options.positions or ((16, 64) if options.quick else generation.POSITIONS)}
        tokens = (4 if options.quick else 32) if options.tokens is None else options.tokens
        sizes |= {"tokens": tokens, "rounds": options.rounds, "limit": options.limit}
        measured = generation.measure(
            names, device, **sizes, apart=not options.quick, progress=lambda line: print(line, file=sys.stderr)
        )
        settings = {"command": results.command(__file__, sys.argv[1:]), "quick": options.quick, **sizes}
        print(generation.table(measured))
        print(*results.keep(results.record("generation", device, settings, measured), out), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
