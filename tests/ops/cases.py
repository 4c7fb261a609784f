"""Random inputs of the three scans, and how each is called: for every test of them."""

import torch


def flags(rows, length, reset, mask, generator):
    """Random document starts and paddings."""
    return {
        "reset": torch.rand(rows, length, generator=generator) < 0.2 if reset else None,
        "mask": torch.rand(rows, length, generator=generator) < 0.8 if mask else None,
    }


def linear_case(rows, length, width, generator, dtype, start):
    shape = (rows, length, width)
    a = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    b = torch.randn(shape, generator=generator, dtype=torch.float64)
    s0 = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return [a.to(dtype), b.to(dtype), s0.to(dtype) if start else None]


def lru_case(rows, length, width, generator, dtype, start):
    shape = (rows, length, width)
    modulus, phase = 0.8 + 0.199 * torch.rand(width, generator=generator), 6.28 * torch.rand(width, generator=generator)
    decay = [modulus * torch.cos(phase), modulus * torch.sin(phase)]
    drive = [torch.randn(shape, generator=generator) for _ in range(2)]
    start_state = [torch.randn(rows, width, generator=generator) if start else None for _ in range(2)]
    return [x if x is None else x.to(dtype) for x in decay + drive + start_state]


def memory_case(rows, length, width, generator, dtype, start):
    c = torch.randn(rows, length, width, generator=generator, dtype=torch.float64)
    beta = torch.randn(rows, length, width, generator=generator, dtype=torch.float64).abs()
    s0 = torch.randint(0, 2, (rows, width), generator=generator) * 2.0 - 1
    return [c.to(dtype), beta.to(dtype), s0.to(dtype) if start else None]


def call_linear(module, inputs, **kwargs):
    return module.linear_scan(*inputs, **kwargs)


def call_lru(module, inputs, **kwargs):
    lam_re, lam_im, b_re, b_im, s_re, s_im = inputs
    start = None if s_re is None else (s_re, s_im)
    states, final = module.lru_scan((lam_re, lam_im), (b_re, b_im), start, **kwargs)
    return (*states, *final)


def call_memory(epsilon):
    def call(module, inputs, **kwargs):
        *inputs, fresh = inputs
        return module.memory_scan(*inputs, epsilon=epsilon, slope=1.3, reset_state=fresh, **kwargs)

    return call


def with_fresh(case):
    def make(rows, length, width, generator, dtype, start):
        fresh = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1 if start else None
        return [*case(rows, length, width, generator, dtype, start), None if fresh is None else fresh.to(dtype)]

    return make


CASES = {
    "linear": (linear_case, call_linear),
    "lru": (lru_case, call_lru),
    "memory_0": (with_fresh(memory_case), call_memory(0.0)),
    "memory_0.3": (with_fresh(memory_case), call_memory(0.3)),
    "memory_1": (with_fresh(memory_case), call_memory(1.0)),
}
