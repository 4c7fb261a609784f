"""Kernels of s_t = a_t s_{t-1} + b_t.

The summary (factor, total) of a chunk of time turns s into factor * s + total.
"""

# pyright: reportInvalidTypeForm=false
from hybridlm.ops.triton.language import jit, tl
from hybridlm.ops.triton.tiles import carried, moves, place, rows, tile, vector


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce(
    a, b, reset, mask, factor, total, cleared,
    length, width: tl.int64, steps, chunks, a_row: tl.int64, a_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the last."""
    row, chunk, cols, inside = place(width, 0, chunks - 1, BLOCK)
    time, left, flag = chunk * steps, steps, row * length
    a += row * a_row + cols
    b += row * b_row + cols
    product = tl.full((BLOCK,), 1.0, STATE)
    state = tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(a, a_step, b, b_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, steps, COUNT):
        later = tile(a, a_step, b, b_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            before = state
            if reset is not None:
                begins = (now[2][i] != 0) & move
                before = tl.where(begins, 0.0, before)
                begun = tl.where(begins, 1, begun)
            decay = now[0][i].to(STATE)
            state = tl.where(move, decay * before + now[1][i].to(STATE), state)
            product = tl.where(move, decay * product, product)
        now = later
        time += COUNT
        left -= COUNT
    here = row * chunks + chunk
    tl.store(factor + here * width + cols, product, mask=inside)
    tl.store(total + here * width + cols, state, mask=inside)
    if reset is not None:
        tl.store(cleared + here, begun.to(tl.uint8))


@jit(do_not_specialize=["length", "steps", "chunks"])
def forward(
    a, b, initial, reset, mask, factor, total, cleared, states, final,
    length, width: tl.int64, steps, chunks, a_row: tl.int64, a_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    time, flag = chunk * steps, row * length
    left = tl.minimum(steps, length - time).to(tl.int32)
    a += row * a_row + cols
    b += row * b_row + cols
    states += (flag + time) * width + cols
    state = vector(initial, row * width + cols, inside, STATE, BLOCK)
    state = carried(state, factor, total, cleared, row * chunks, 1, chunk, width, cols, inside, COUNT)
    now = tile(a, a_step, b, b_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(a, a_step, b, b_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        reach = tl.where(inside, left, 0)
        for i in tl.static_range(COUNT):
            before = state
            if reset is not None:
                before = tl.where(now[2][i] != 0, 0.0, before)
            after = now[0][i].to(STATE) * before + now[1][i].to(STATE)
            state = tl.where(moves(mask, now[3], left, i), after, state)
            tl.store(states, state.to(states.dtype.element_ty), mask=reach > i)
            states += width
        now = later
        time += COUNT
        left -= COUNT
    if chunk == chunks - 1:
        tl.store(final + row * width + cols, state, mask=inside)


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce_back(
    grad, a, reset, mask, factor, total, cleared,
    length, width: tl.int64, steps, chunks, g_row: tl.int64, g_step: tl.int64, a_row: tl.int64, a_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the first, from the right end of each to its left."""
    row, chunk, cols, inside = place(width, 1, chunks - 1, BLOCK)
    flag = row * length
    left = tl.minimum(steps, length - chunk * steps).to(tl.int32)
    time = chunk * steps + left - 1
    grad += row * g_row + cols
    a += row * a_row + cols
    product = tl.full((BLOCK,), 1.0, STATE)
    carry = tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(grad, g_step, a, a_step, reset, mask, flag, time, left, inside, -1, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(grad, g_step, a, a_step, reset, mask, flag, time - COUNT, left - COUNT, inside, -1, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            decay = now[1][i].to(STATE)
            lam = now[0][i].to(STATE) + carry
            carry = tl.where(move, decay * lam, lam)
            product = tl.where(move, decay * product, product)
            if reset is not None:
                begins = (now[2][i] != 0) & move
                carry = tl.where(begins, 0.0, carry)
                begun = tl.where(begins, 1, begun)
        now = later
        time -= COUNT
        left -= COUNT
    here = row * chunks + chunk
    tl.store(factor + here * width + cols, product, mask=inside)
    tl.store(total + here * width + cols, carry, mask=inside)
    if reset is not None:
        tl.store(cleared + here, begun.to(tl.uint8))


@jit(do_not_specialize=["length", "steps", "chunks"])
def backward(
    grad, a, grad_final, states, initial, reset, mask, factor, total, cleared, grad_a, grad_b, grad_initial,
    length, width: tl.int64, steps, chunks, g_row: tl.int64, g_step: tl.int64, a_row: tl.int64, a_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    flag = row * length
    left = tl.minimum(steps, length - chunk * steps).to(tl.int32)
    edge = (chunk == 0).to(tl.int32)  # nothing is stored before the first state
    time = chunk * steps + left - 1
    grad += row * g_row + cols
    a += row * a_row + cols
    before = states + (flag - 1) * width + cols
    grad_a += (flag + time) * width + cols
    grad_b += (flag + time) * width + cols
    start = vector(initial, row * width + cols, inside, STATE, BLOCK)
    carry = vector(grad_final, row * width + cols, inside, STATE, BLOCK)
    last = chunks - 1
    carry = carried(carry, factor, total, cleared, row * chunks + last, -1, last - chunk, width, cols, inside, COUNT)
    now = tile(grad, g_step, a, a_step, reset, mask, flag, time, left, inside, -1, COUNT)
    before_now = rows(before + time * width, -width, left - edge, inside, COUNT)
    for _ in range(0, left, COUNT):
        rest = left - COUNT
        later = tile(grad, g_step, a, a_step, reset, mask, flag, time - COUNT, rest, inside, -1, COUNT)
        before_later = rows(before + (time - COUNT) * width, -width, rest - edge, inside, COUNT)
        reach = tl.where(inside, left, 0)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            lam = now[0][i].to(STATE) + carry
            to_a = lam * tl.where(time == i, start, before_now[i].to(STATE))
            after = now[1][i].to(STATE) * lam
            if reset is not None:
                begins = now[2][i] != 0
                to_a = tl.where(begins, 0.0, to_a)
                after = tl.where(begins, 0.0, after)
            carry = tl.where(move, after, lam)
            tl.store(grad_a, tl.where(move, to_a, 0.0).to(grad_a.dtype.element_ty), mask=reach > i)
            tl.store(grad_b, tl.where(move, lam, 0.0).to(grad_b.dtype.element_ty), mask=reach > i)
            grad_a -= width
            grad_b -= width
        now, before_now = later, before_later
        time -= COUNT
        left = rest
    if chunk == 0:
        tl.store(grad_initial + row * width + cols, carry, mask=inside)
