"""The scans beside a copy and the best pure-PyTorch form: python scripts/bench_kernels.py [--device cuda]

Exits with 1 where a kernel is wrong: it is not timed then.
"""

import argparse
import sys

import torch

from hybridlm.bench import kernels, results
from hybridlm.bench.timing import ALLOCATORS, check_counts, check_device
from hybridlm.errors import UserError


def shape(text: str) -> tuple[int, int, int]:
    """8x1024x512: B, T and N."""
    sizes = [int(part) for part in text.split("x") if part.isdecimal()]
    if len(sizes) != 3 or text != "x".join(map(str, sizes)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be three numbers B, T and N, as in 8x1024x512")
    return sizes[0], sizes[1], sizes[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Every scan, path and shape: milliseconds, GB/s by the bytes that nothing can do without, the "
        "share of a copy's bandwidth in the same run, and the ratio to the best pure-PyTorch form."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=tuple(kernels.DTYPES), help="of storage (default: float32, on cuda bfloat16)"
    )
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="BxTxN", help="(default: those of the device)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, of which the median counts (default: 7)")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds that one call may take (default: 2)")
    parser.add_argument(
        "--allocator", choices=tuple(ALLOCATORS), default="kept",
        help="on a CPU, freed memory is kept, as `hybridlm pretrain` does (default), or left to the C library",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small shapes: whether it runs")
    parser.add_argument("--out", metavar="FILE.json", help="default: in scripts/results, with --quick in runs/bench")
    options = parser.parse_args()
    kept: list[str] = []
    try:
        device = check_device(options.device)
        check_counts(threads=options.threads)
        torch.set_num_threads(options.threads)
        dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
        out = results.check_out(
            options.out or results.default_out(__file__, "kernels", options.device, dtype, options.quick)
        )
        settings = {"command": results.command(__file__, sys.argv[1:]), "quick": options.quick, "dtype": dtype}
        settings |= {"rounds": options.rounds, "limit": options.limit, "allocator": options.allocator}
        measured = kernels.measure(
            device,
            kernels.DTYPES[dtype],
            options.shapes or (kernels.QUICK if options.quick else kernels.SHAPES[options.device]),
            rounds=options.rounds,
            limit=options.limit,
            allocator=options.allocator,
            copy_bytes=2**22 if options.quick else None,
            progress=lambda line: print(line, file=sys.stderr),
            so_far=lambda part: kept.append(
                results.keep_unfinished(results.record("kernels", device, settings, part), out)
            ),
        )
        print(kernels.table(measured))
        print(*results.keep(results.record("kernels", device, settings, measured), out), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {kept[-1] if kept else 'nothing was written'}", file=sys.stderr)
        return 130
    return 1 if measured["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
