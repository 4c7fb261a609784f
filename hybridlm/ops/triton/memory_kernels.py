"""Kernels of the memory recurrent unit, straight from c and beta: z = H(|c| - beta), s_t = z (S(c) + epsilon s_{t-1}) +
(1 - z) s_{t-1}.

The summary (factor, total) of a chunk of time turns s into factor * s + total. At epsilon 0 a factor is 0 or 1 and a
total 0 or +-1, so that a cut of time changes no bit.
"""

# pyright: reportInvalidTypeForm=false
from hybridlm.ops.triton.language import jit, tl
from hybridlm.ops.triton.tiles import carried, moves, place, rows, tile, vector


@jit
def written(c, beta, before, epsilon):
    """The state after a step, and whether it was written. A NaN in c or beta is a NaN in the state."""
    margin = tl.abs(c) - beta
    write = margin >= 0
    after = tl.where(write, tl.where(c >= 0, 1.0, -1.0) + epsilon * before, before)
    return tl.where(margin == margin, after, margin), write


@jit
def befores(now, state, document, epsilon, reset, mask, left, STATE: tl.constexpr, COUNT: tl.constexpr):
    """The state before each step of a tile, from the one before the tile."""
    out = ()
    for i in tl.static_range(COUNT):
        before = state
        if reset is not None:
            before = tl.where(now[2][i] != 0, document, before)
        out += (before,)
        after, _write = written(now[0][i].to(STATE), now[1][i].to(STATE), before, epsilon)
        state = tl.where(moves(mask, now[3], left, i), after, state)
    return out


@jit
def surrogate(x, slope):
    """H'(x) := k / (1 + (pi k x)^2)."""
    steep = 3.141592653589793 * slope * x
    return slope / (1 + steep * steep)


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce(
    c, beta, epsilon: tl.float64, reset, fresh, mask, factor, total, cleared,
    length, width: tl.int64, steps, chunks, c_row: tl.int64, c_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the last."""
    row, chunk, cols, inside = place(width, 0, chunks - 1, BLOCK)
    time, left, flag = chunk * steps, steps, row * length
    c += row * c_row + cols
    beta += row * b_row + cols
    kept = tl.full((BLOCK,), epsilon, STATE)
    document = vector(fresh, cols, inside, STATE, BLOCK)
    product = tl.full((BLOCK,), 1.0, STATE)
    state = tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(c, c_step, beta, b_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, steps, COUNT):
        later = tile(c, c_step, beta, b_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            before = state
            if reset is not None:
                begins = (now[2][i] != 0) & move
                before = tl.where(begins, document, before)
                begun = tl.where(begins, 1, begun)
            after, write = written(now[0][i].to(STATE), now[1][i].to(STATE), before, kept)
            state = tl.where(move, after, state)
            product = tl.where(move, tl.where(write, kept * product, product), product)
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
    c, beta, initial, epsilon: tl.float64, reset, fresh, mask, factor, total, cleared, states, final,
    length, width: tl.int64, steps, chunks, c_row: tl.int64, c_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    time, flag = chunk * steps, row * length
    left = tl.minimum(steps, length - time).to(tl.int32)
    c += row * c_row + cols
    beta += row * b_row + cols
    states += (flag + time) * width + cols
    kept = tl.full((BLOCK,), epsilon, STATE)
    document = vector(fresh, cols, inside, STATE, BLOCK)
    state = vector(initial, row * width + cols, inside, STATE, BLOCK)
    state = carried(state, factor, total, cleared, row * chunks, 1, chunk, width, cols, inside, COUNT)
    now = tile(c, c_step, beta, b_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(c, c_step, beta, b_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        reach = tl.where(inside, left, 0)
        for i in tl.static_range(COUNT):
            before = state
            if reset is not None:
                before = tl.where(now[2][i] != 0, document, before)
            after, _write = written(now[0][i].to(STATE), now[1][i].to(STATE), before, kept)
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
    c, beta, grad, epsilon: tl.float64, reset, mask, factor, total, cleared,
    length, width: tl.int64, steps, chunks, c_row: tl.int64, c_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    g_row: tl.int64, g_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the first, from the right end of each to its left."""
    row, chunk, cols, inside = place(width, 1, chunks - 1, BLOCK)
    flag = row * length
    left = tl.minimum(steps, length - chunk * steps).to(tl.int32)
    time = chunk * steps + left - 1
    c += row * c_row + cols
    beta += row * b_row + cols
    grad += row * g_row + cols
    small = tl.full((BLOCK,), epsilon, STATE)
    product = tl.full((BLOCK,), 1.0, STATE)
    carry = tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(c, c_step, beta, b_step, reset, mask, flag, time, left, inside, -1, COUNT)
    grad_now = rows(grad + time * g_step, -g_step, left, inside, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(c, c_step, beta, b_step, reset, mask, flag, time - COUNT, left - COUNT, inside, -1, COUNT)
        grad_later = rows(grad + (time - COUNT) * g_step, -g_step, left - COUNT, inside, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            write = tl.abs(now[0][i].to(STATE)) - now[1][i].to(STATE) >= 0
            lam = grad_now[i].to(STATE) + carry
            carry = tl.where(move, tl.where(write, small * lam, lam), lam)
            product = tl.where(move, tl.where(write, small * product, product), product)
            if reset is not None:
                begins = (now[2][i] != 0) & move
                carry = tl.where(begins, 0.0, carry)
                begun = tl.where(begins, 1, begun)
        now, grad_now = later, grad_later
        time -= COUNT
        left -= COUNT
    here = row * chunks + chunk
    tl.store(factor + here * width + cols, product, mask=inside)
    tl.store(total + here * width + cols, carry, mask=inside)
    if reset is not None:
        tl.store(cleared + here, begun.to(tl.uint8))


@jit(do_not_specialize=["length", "steps", "chunks"])
def backward(
    c, beta, grad, grad_final, states, initial, epsilon: tl.float64, slope: tl.float64, reset, fresh, mask,
    factor, total, cleared, to_c, to_beta, to_initial, to_fresh,
    length, width: tl.int64, steps, chunks, c_row: tl.int64, c_step: tl.int64, b_row: tl.int64, b_step: tl.int64,
    g_row: tl.int64, g_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Tiles from the right to the left. The states inside a tile are computed again from the one stored before it, so
    that one row in COUNT is read. The gradient of reset_state comes out as a sum over each chunk."""
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    begin, flag = chunk * steps, row * length
    size = tl.minimum(steps, length - begin).to(tl.int32)
    whole = (size - 1) // COUNT * COUNT
    time, left = begin + whole, size - whole
    c += row * c_row + cols
    beta += row * b_row + cols
    grad += row * g_row + cols
    states += (flag - 1) * width + cols
    to_c += flag * width + cols
    to_beta += flag * width + cols
    small, k = tl.full((BLOCK,), epsilon, STATE), tl.full((BLOCK,), slope, STATE)
    document = vector(fresh, cols, inside, STATE, BLOCK)
    end = row * width + cols
    start, carry = vector(initial, end, inside, STATE, BLOCK), vector(grad_final, end, inside, STATE, BLOCK)
    last = chunks - 1
    carry = carried(carry, factor, total, cleared, row * chunks + last, -1, last - chunk, width, cols, inside, COUNT)
    summed = tl.full((BLOCK,), 0.0, STATE)
    now = tile(c, c_step, beta, b_step, reset, mask, flag, time, left, inside, 1, COUNT)
    grad_now = rows(grad + time * g_step, g_step, left, inside, COUNT)
    entry = rows(states + time * width, width, time, inside, 1)  # nothing is stored before the first state
    for _ in range(0, size, COUNT):
        more = tl.where(time > begin, COUNT, 0)
        later = tile(c, c_step, beta, b_step, reset, mask, flag, time - COUNT, more, inside, 1, COUNT)
        grad_later = rows(grad + (time - COUNT) * g_step, g_step, more, inside, COUNT)
        entry_later = rows(states + (time - COUNT) * width, width, time - COUNT, inside, 1)
        reach = tl.where(inside, left, 0)
        state = tl.where(time == 0, start, entry[0].to(STATE))
        prior = befores(now, state, document, small, reset, mask, left, STATE, COUNT)
        for i in tl.static_range(COUNT - 1, -1, -1):
            move = moves(mask, now[3], left, i)
            x = now[0][i].to(STATE)
            margin = tl.abs(x) - now[1][i].to(STATE)
            write = margin >= 0
            sign = tl.where(x >= 0, 1.0, -1.0).to(STATE)
            lam = grad_now[i].to(STATE) + carry
            through_write = lam * (sign + (small - 1) * prior[i]) * surrogate(margin, k)
            through_sign = tl.where(write, lam, 0.0) * (2 * surrogate(x, k))
            after = tl.where(write, small * lam, lam)
            if reset is not None:
                begins = (now[2][i] != 0) & move
                if to_fresh is not None:
                    summed = tl.where(begins, summed + after, summed)
                after = tl.where(begins, 0.0, after)
            carry = tl.where(move, after, lam)
            here = (time + i) * width
            out_c = tl.where(move, through_sign + through_write * sign, 0.0)
            out_beta = tl.where(move, -through_write, 0.0)
            tl.store(to_c + here, out_c.to(to_c.dtype.element_ty), mask=reach > i)
            tl.store(to_beta + here, out_beta.to(to_beta.dtype.element_ty), mask=reach > i)
        now, grad_now, entry = later, grad_later, entry_later
        time -= COUNT
        left = more
    if to_fresh is not None:
        tl.store(to_fresh + (row * chunks + chunk) * width + cols, summed, mask=inside)
    if chunk == 0:
        tl.store(to_initial + end, carry, mask=inside)
