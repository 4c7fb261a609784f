"""Random index scans, their states by hand and their surrogate gradient by dense float64 algebra."""

import torch
from torch.nn import functional as F


def random_scan(length, rows=3, heads=2, n=5, seed=0, flags=True):
    """drive, initial state, reset and mask; a document or padding begins about every seventh step."""
    generator = torch.Generator().manual_seed(seed)
    drive = torch.randn(rows, length, heads, n, n, generator=generator, dtype=torch.float64)
    start = torch.randint(0, n, (rows, heads), generator=generator, dtype=torch.uint8)
    if not flags:
        return drive, start, None, None
    reset, mask = (torch.rand(rows, length, generator=generator) for _ in range(2))
    return drive, start, reset < 0.15, mask > 0.15


def identity(drive):
    """Values whose h is the states one-hot, and whose gradient is that of these."""
    heads, n = drive.shape[2:4]
    return torch.eye(n, dtype=drive.dtype).repeat(heads, 1, 1)


def by_hand(drive, start, reset, mask):
    """The states, with Python's integers; a masked position never resets."""
    maps, states = drive.argmax(-1).tolist(), torch.empty(drive.shape[:3], dtype=torch.long)
    for row in range(drive.shape[0]):
        for head in range(drive.shape[2]):
            state = int(start[row, head])
            for t in range(drive.shape[1]):
                if mask is None or mask[row, t]:
                    state = maps[row][t][head][0 if reset is not None and reset[row, t] else state]
                states[row, t, head] = state
    return states


def dense_gradient(drive, start, grad, reset, mask):
    """The formula with matrices over all states, float64: lambda_t is a product of 0/1 matrices with what comes later,
    and the gradient is that of the softmax, as autograd knows it."""
    rows, length, heads, n, _ = drive.shape
    states, maps = by_hand(drive, start, reset, mask), drive.argmax(-1)
    found = torch.zeros_like(drive)
    for row in range(rows):
        for head in range(heads):
            worth = torch.zeros(n, dtype=drive.dtype)
            for t in range(length - 1, -1, -1):
                worth = worth + grad[row, t, head]
                if mask is not None and not mask[row, t]:
                    continue
                fresh = reset is not None and bool(reset[row, t])
                before = 0 if fresh else int(start[row, head] if t == 0 else states[row, t - 1, head])
                logits = drive[row, t, head, before].clone().requires_grad_()
                (logits.softmax(-1) @ worth).backward()
                found[row, t, head, before] = logits.grad
                goes = F.one_hot(maps[row, t, head], n).to(drive.dtype)  # [source, destination]
                worth = torch.zeros_like(worth) if fresh else goes @ worth
    return found


def case(length, n=5, d=3, dtype=torch.float64, noisy=True, flags=True, rows=3, seed=0):
    """Arguments of `index_scan`, with many ties, and what arrives at h. Logits are exact in every dtype."""
    theta, start, reset, mask = random_scan(length, rows=rows, n=n, seed=seed, flags=flags)
    generator = torch.Generator().manual_seed(seed + 1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(wide)

    heads = theta.shape[2]
    found = {"theta": (4 * theta).round().div(4).to(dtype), "values": random(heads, n, d), "initial_state": start}
    found |= {"bias": random(heads, n, n).mul(2).round() / 2, "temperature": 0.7, "reset": reset, "mask": mask}
    found["noise"] = random(*theta.shape).mul(2).round() / 2 if noisy else None
    return found, random(*theta.shape[:3], d)


def logits_of(given):
    total = given["theta"].double() + given["bias"].double()
    return total if given["noise"] is None else total + given["noise"].double()


def dense(given, grad):
    """The same in float64."""
    states, logits = by_hand(logits_of(given), given["initial_state"], given["reset"], given["mask"]), logits_of(given)
    values, grad = given["values"].double(), grad.double()
    h = values[torch.arange(values.shape[0]), states]
    worth = torch.einsum("btkd,knd->btkn", grad, values) / given["temperature"]
    scaled = logits / given["temperature"]
    found = dense_gradient(scaled, given["initial_state"], worth, given["reset"], given["mask"])
    visited = torch.nn.functional.one_hot(states, values.shape[1]).double()
    return h, states, found, found.sum((0, 1)), torch.einsum("btkn,btkd->knd", visited, grad)
