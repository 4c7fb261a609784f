"""For gpu_check.sh: the device's name as part of a file name, versions on the error stream; a reason and code 1 where
no kernel can run: python scripts/gpu_check.py"""

import platform
import re
import sys

import torch

import hybridlm
from hybridlm.ops import triton
from hybridlm.ops.errors import Unavailable


def main() -> int:
    try:
        words = triton.words()
    except Unavailable as error:
        print(f"gpu_check needs a CUDA device: {error}.", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_properties(0)
    print(
        f"{words}: {device.multi_processor_count} multiprocessors, {device.total_memory / 2**30:.0f} GiB, "
        f"sm_{device.major}{device.minor}\nhybridlm {hybridlm.__version__}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, Python {platform.python_version()}",
        file=sys.stderr,
    )
    print(re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
