"""Benchmarks: the scans by themselves, training and generation beside models of transformers.

    kernels       every scan, path and shape, against the bandwidth of a copy and the best pure-PyTorch form
    training      tokens per second and memory, against the rate of matrix products
    memory        peak memory of training, as a dry run estimates it, against real runs
    generation    tokens per second and memory at positions up to 32k
    positions     a checkpoint beside a Transformer of its size, up to a million tokens: `hybridlm bench-generation`
    scaling       several processes: tokens per second, bytes sent, memory; `arithmetic` carries the bytes to many GPUs

What is compared is timed in turn, in rounds, and ratios are taken round by round: a machine with other work to do slows
all alike. `results` keeps what was measured as JSON, `page` makes a section of a page from it.
"""
