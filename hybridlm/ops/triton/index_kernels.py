"""Kernels of finite-state heads: maps of all tokens at once, then integers followed through them.

A program of `maps`, `emit` and `scatter` has one head of one token. One of `compose`, `walk`, `reduce_back` and
`walk_back` has one head of one row and one chunk of time, and walks it: what it loads depends on the step before, so
only many programs fill a device, and time is split where rows and heads are few. Integers are composed by lookup, so a
cut of time changes no bit forward.
"""

# pyright: reportInvalidTypeForm=false
from hybridlm.ops.triton.language import jit, tl


# tl.max and its like are kernels of Triton's own, made when it is imported: the interpreter cannot run those.
@jit
def larger(a, b):
    return tl.maximum(a, b)


@jit
def smaller(a, b):
    return tl.minimum(a, b)


@jit
def plus(a, b):
    return a + b


@jit
def logits(theta, bias, noise, at, inside, STATE: tl.constexpr):
    """theta + bias + noise, in this order; anything outside."""
    x = tl.load(theta + at, mask=inside, other=0.0).to(STATE)
    if bias is not None:
        x += tl.load(bias + at, mask=inside, other=0.0)
    if noise is not None:
        x += tl.load(noise + at, mask=inside, other=0.0)
    return x


@jit
def flags(reset, mask, token):
    """Whether a token begins a document, and whether it is padding."""
    fresh, held = token < 0, token < 0
    if mask is not None:
        held = tl.load(mask + token) == 0
    if reset is not None:
        fresh = (tl.load(reset + token) != 0) & (held == 0)
    return fresh, held


@jit
def place(chunks, heads):
    """Row, chunk and head of a program, int64."""
    program = tl.program_id(0).to(tl.int64)
    return program // heads // chunks, program // heads % chunks, program % heads


@jit
def before(states, initial, token, head, length, heads, fresh):
    """s_{t-1} of a head, 0 at a document's start."""
    first = token % length == 0
    at = tl.where(first, token // length, token - 1) * heads + head
    found = tl.load(states + at, mask=first == 0, other=0) + tl.load(initial + at, mask=first, other=0)
    return tl.where(fresh, 0, found.to(tl.int32))


@jit
def maps(
    theta, bias, noise, reset, mask, out, heads: tl.int64,
    N: tl.constexpr, WIDE: tl.constexpr, SOURCES: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Where each source goes, flags worked in: to the first NaN, else to the first largest."""
    program = tl.program_id(0).to(tl.int64)
    fresh, held = flags(reset, mask, program // heads)
    theta += program * N * N
    if bias is not None:
        bias += program % heads * N * N
    if noise is not None:
        noise += program * N * N
    to = tl.arange(0, WIDE)
    for first in range(0, N, SOURCES):
        source = first + tl.arange(0, SOURCES)
        inside = (source < N)[:, None] & (to < N)[None, :]
        at = tl.where(fresh, 0, source)[:, None] * N + to[None, :]  # from a document's start all go where 0 goes
        x = logits(theta, bias, noise, at, inside, STATE)
        nan = inside & (x != x)
        most = tl.reduce(tl.where(inside & (x == x), x, float("-inf")), 1, larger)
        found = tl.reduce(tl.where(inside & (x == most[:, None]), to[None, :], WIDE), 1, smaller)
        lost = tl.reduce(tl.where(nan, to[None, :], WIDE), 1, smaller)
        found = tl.where(lost < WIDE, lost, found)
        tl.store(out + program * N + source, tl.where(held, source, found).to(tl.uint8), mask=source < N)


@jit(do_not_specialize=["length", "steps", "chunks"])
def compose(tau, out, length, steps, chunks, heads: tl.int64, N: tl.constexpr, WIDE: tl.constexpr):
    """The map of each chunk but the last, (B, chunks, K, n)."""
    row, chunk, head = place(chunks - 1, heads)
    lane = tl.arange(0, WIDE)
    state = lane
    tau += ((row * length + chunk * steps) * heads + head) * N
    for _ in range(0, steps):
        state = tl.load(tau + state, mask=lane < N, other=0).to(tl.int32)
        tau += heads * N
    tl.store(out + ((row * chunks + chunk) * heads + head) * N + lane, state.to(tl.uint8), mask=lane < N)


@jit(do_not_specialize=["length", "steps", "chunks"])
def walk(tau, composed, initial, states, length, steps, chunks, heads: tl.int64, N: tl.constexpr):
    """The states of a chunk, from the first one through the maps of the chunks before."""
    row, chunk, head = place(chunks, heads)
    state = tl.load(initial + row * heads + head).to(tl.int32)
    if composed is not None:
        composed += (row * chunks * heads + head) * N
        for _ in range(0, chunk):
            state = tl.load(composed + state).to(tl.int32)
            composed += heads * N
    at = (row * length + chunk * steps) * heads + head
    for _ in range(0, tl.minimum(steps, length - chunk * steps)):
        state = tl.load(tau + at * N + state).to(tl.int32)
        tl.store(states + at, state.to(tl.uint8))
        at += heads


@jit(do_not_specialize=["length"])
def emit(
    theta, bias, noise, values, initial, states, reset, mask, h, p, temperature: tl.float64, length, heads: tl.int64,
    N: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, WIDE_D: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """h = V[s_t], NaN where the row that was read holds one; p, where it is kept, the softmax of that row."""
    program = tl.program_id(0).to(tl.int64)
    token, head = program // heads, program % heads
    fresh, held = flags(reset, mask, token)
    j = before(states, initial, token, head, length, heads, fresh)
    lane, number = tl.arange(0, WIDE), tl.arange(0, WIDE_D)
    inside = lane < N
    if bias is not None:
        bias += head * N * N
    if noise is not None:
        noise += program * N * N
    x = logits(theta + program * N * N, bias, noise, j * N + lane, inside, STATE)
    lost = (tl.reduce((inside & (x != x)).to(tl.int32), 0, larger) != 0) & (held == 0)
    s = tl.load(states + program).to(tl.int64)
    value = tl.load(values + (head * N + s) * D + number, mask=number < D, other=0.0)
    tl.store(h + program * D + number, tl.where(lost, float("nan"), value), mask=number < D)
    if p is not None:
        x = tl.where(inside, x, float("-inf"))
        power = tl.exp((x - tl.reduce(x, 0, larger)) / tl.full((), temperature, STATE))
        tl.store(p + program * N + lane, power / tl.reduce(power, 0, plus), mask=inside)


@jit
def step_back(q, tau, reset, mask, token, at, later, lane, N: tl.constexpr):
    """lambda_t of all states, and what it is worth before the step to be in each."""
    inside = lane < N
    worth = tl.load(q + at * N + lane, mask=inside, other=0.0) + later
    to = tl.load(tau + at * N + lane, mask=inside, other=0).to(tl.int32)
    fresh, _held = flags(reset, mask, token)
    return worth, tl.where(fresh, 0.0, tl.gather(worth, to, 0)), to, fresh


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce_back(
    q, tau, reset, mask, total, composed, cleared, length, steps, chunks, heads: tl.int64,
    N: tl.constexpr, WIDE: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Of every chunk but the first: what it adds, where it leads, and whether a document begins in it."""
    row, chunk, head = place(chunks - 1, heads)
    chunk += 1
    lane = tl.arange(0, WIDE)
    later, leads, begun = tl.full((WIDE,), 0.0, STATE), lane, tl.full((), 0, tl.int32)
    count = tl.minimum(steps, length - chunk * steps)
    token = row * length + chunk * steps + count - 1
    for _ in range(0, count):
        _worth, later, to, fresh = step_back(q, tau, reset, mask, token, token * heads + head, later, lane, N)
        leads = tl.gather(leads, to, 0)
        begun = tl.where(fresh, 1, begun)
        token -= 1
    at = (row * chunks + chunk) * heads + head
    tl.store(total + at * N + lane, later, mask=lane < N)
    tl.store(composed + at * N + lane, leads.to(tl.uint8), mask=lane < N)
    tl.store(cleared + at, begun.to(tl.uint8))


@jit(do_not_specialize=["length", "steps", "chunks"])
def walk_back(
    q, tau, p, reset, mask, total, composed, cleared, out, temperature: tl.float64, length, steps, chunks,
    heads: tl.int64, N: tl.constexpr, WIDE: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """p (lambda - <p, lambda>) / temperature at every token of a chunk, (B, T, K, n)."""
    row, chunk, head = place(chunks, heads)
    lane = tl.arange(0, WIDE)
    inside = lane < N
    later = tl.full((WIDE,), 0.0, STATE)
    if total is not None:
        at = (row * chunks + chunks - 1) * heads + head
        for _ in range(0, chunks - 1 - chunk):
            to = tl.load(composed + at * N + lane, mask=inside, other=0).to(tl.int32)
            begun = tl.load(cleared + at) != 0
            own = tl.load(total + at * N + lane, mask=inside, other=0.0)
            later = own + tl.where(begun, 0.0, tl.gather(later, to, 0))
            at -= heads
    count = tl.minimum(steps, length - chunk * steps)
    token = row * length + chunk * steps + count - 1
    for _ in range(0, count):
        at = token * heads + head
        _fresh, held = flags(reset, mask, token)
        worth, later, _to, _begun = step_back(q, tau, reset, mask, token, at, later, lane, N)
        share = tl.load(p + at * N + lane, mask=inside, other=0.0)
        mean = tl.reduce(tl.where(inside, share * worth, 0.0), 0, plus)
        found = tl.where(held, 0.0, share * (worth - mean) / tl.full((), temperature, STATE))
        tl.store(out + at * N + lane, found, mask=inside)
        token -= 1


@jit(do_not_specialize=["length"])
def scatter(
    row, initial, states, reset, mask, out, length, heads: tl.int64,
    N: tl.constexpr, WIDE: tl.constexpr, SOURCES: tl.constexpr,
):  # fmt: skip
    """The gradient of theta: `row` where a head came from, 0 elsewhere."""
    program = tl.program_id(0).to(tl.int64)
    token, head = program // heads, program % heads
    fresh, _held = flags(reset, mask, token)
    j = before(states, initial, token, head, length, heads, fresh)
    to = tl.arange(0, WIDE)
    found = tl.load(row + program * N + to, mask=to < N, other=0.0)
    for first in range(0, N, SOURCES):
        source = first + tl.arange(0, SOURCES)
        inside = (source < N)[:, None] & (to < N)[None, :]
        x = tl.where((source == j)[:, None], found[None, :], 0.0)
        tl.store(out + program * N * N + source[:, None] * N + to[None, :], x, mask=inside)
