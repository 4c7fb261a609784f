"""Kernels of s_t = lambda s_{t-1} + b_t, complex, lambda constant over time; real and imaginary planes side by side.

The summary of a chunk of time is complex as well: it turns s into factor * s + total.
"""

# pyright: reportInvalidTypeForm=false
from hybridlm.ops.triton.language import jit, tl
from hybridlm.ops.triton.tiles import flags, moves, place, rows, tile, vector


@jit
def times(x_re, x_im, y_re, y_im):
    return x_re * y_re - x_im * y_im, x_re * y_im + x_im * y_re


@jit
def pick(condition, x_re, x_im, y_re, y_im):
    return tl.where(condition, x_re, y_re), tl.where(condition, x_im, y_im)


@jit
def carried(
    re, im, factor_re, factor_im, total_re, total_im, cleared, chunk, DIRECTION: tl.constexpr, left, width, cols,
    inside, COUNT: tl.constexpr,
):  # fmt: skip
    """As `tiles.carried`, complex."""
    step = DIRECTION * width
    if factor_re is not None:
        for _ in range(0, left, COUNT):
            here = chunk * width + cols
            factors_re = rows(factor_re + here, step, left, inside, COUNT)
            factors_im = rows(factor_im + here, step, left, inside, COUNT)
            totals_re = rows(total_re + here, step, left, inside, COUNT)
            totals_im = rows(total_im + here, step, left, inside, COUNT)
            clear = flags(cleared, chunk, DIRECTION, left, COUNT)
            for i in tl.static_range(COUNT):
                after_re, after_im = times(factors_re[i], factors_im[i], re, im)
                after_re, after_im = after_re + totals_re[i], after_im + totals_im[i]
                if cleared is not None:
                    after_re, after_im = pick(clear[i] != 0, totals_re[i], totals_im[i], after_re, after_im)
                re, im = pick(i < left, after_re, after_im, re, im)
            chunk += DIRECTION * COUNT
            left -= COUNT
    return re, im


@jit
def keep(
    factor_re, factor_im, total_re, total_im, cleared, here, width, cols, inside, product_re, product_im, re, im, begun
):  # fmt: skip
    """Store the summary of chunk `here` (of all rows)."""
    offset = here * width + cols
    tl.store(factor_re + offset, product_re, mask=inside)
    tl.store(factor_im + offset, product_im, mask=inside)
    tl.store(total_re + offset, re, mask=inside)
    tl.store(total_im + offset, im, mask=inside)
    if cleared is not None:
        tl.store(cleared + here, begun.to(tl.uint8))


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce(
    lam_re, lam_im, b_re, b_im, reset, mask, factor_re, factor_im, total_re, total_im, cleared,
    length, width: tl.int64, steps, chunks, re_row: tl.int64, re_step: tl.int64, im_row: tl.int64, im_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the last."""
    row, chunk, cols, inside = place(width, 0, chunks - 1, BLOCK)
    time, left, flag = chunk * steps, steps, row * length
    b_re += row * re_row + cols
    b_im += row * im_row + cols
    decay_re = vector(lam_re, cols, inside, STATE, BLOCK)
    decay_im = vector(lam_im, cols, inside, STATE, BLOCK)
    product_re, product_im = tl.full((BLOCK,), 1.0, STATE), tl.full((BLOCK,), 0.0, STATE)
    re, im = tl.full((BLOCK,), 0.0, STATE), tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(b_re, re_step, b_im, im_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, steps, COUNT):
        later = tile(b_re, re_step, b_im, im_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            before_re, before_im = re, im
            if reset is not None:
                begins = (now[2][i] != 0) & move
                before_re, before_im = pick(begins, 0.0, 0.0, before_re, before_im)
                begun = tl.where(begins, 1, begun)
            after_re, after_im = times(decay_re, decay_im, before_re, before_im)
            re, im = pick(move, after_re + now[0][i].to(STATE), after_im + now[1][i].to(STATE), re, im)
            power_re, power_im = times(decay_re, decay_im, product_re, product_im)
            product_re, product_im = pick(move, power_re, power_im, product_re, product_im)
        now = later
        time += COUNT
        left -= COUNT
    keep(
        factor_re, factor_im, total_re, total_im, cleared, row * chunks + chunk, width, cols, inside,
        product_re, product_im, re, im, begun,
    )  # fmt: skip


@jit(do_not_specialize=["length", "steps", "chunks"])
def forward(
    lam_re, lam_im, b_re, b_im, s_re, s_im, reset, mask, factor_re, factor_im, total_re, total_im, cleared,
    out_re, out_im, final_re, final_im,
    length, width: tl.int64, steps, chunks, re_row: tl.int64, re_step: tl.int64, im_row: tl.int64, im_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    time, flag = chunk * steps, row * length
    left = tl.minimum(steps, length - time).to(tl.int32)
    b_re += row * re_row + cols
    b_im += row * im_row + cols
    out_re += (flag + time) * width + cols
    out_im += (flag + time) * width + cols
    decay_re = vector(lam_re, cols, inside, STATE, BLOCK)
    decay_im = vector(lam_im, cols, inside, STATE, BLOCK)
    end = row * width + cols
    re, im = vector(s_re, end, inside, STATE, BLOCK), vector(s_im, end, inside, STATE, BLOCK)
    re, im = carried(
        re, im, factor_re, factor_im, total_re, total_im, cleared, row * chunks, 1, chunk, width, cols, inside, COUNT
    )
    now = tile(b_re, re_step, b_im, im_step, reset, mask, flag, time, left, inside, 1, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(b_re, re_step, b_im, im_step, reset, mask, flag, time + COUNT, left - COUNT, inside, 1, COUNT)
        reach = tl.where(inside, left, 0)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            before_re, before_im = re, im
            if reset is not None:
                before_re, before_im = pick(now[2][i] != 0, 0.0, 0.0, before_re, before_im)
            after_re, after_im = times(decay_re, decay_im, before_re, before_im)
            re, im = pick(move, after_re + now[0][i].to(STATE), after_im + now[1][i].to(STATE), re, im)
            tl.store(out_re, re.to(out_re.dtype.element_ty), mask=reach > i)
            tl.store(out_im, im.to(out_im.dtype.element_ty), mask=reach > i)
            out_re += width
            out_im += width
        now = later
        time += COUNT
        left -= COUNT
    if chunk == chunks - 1:
        tl.store(final_re + end, re, mask=inside)
        tl.store(final_im + end, im, mask=inside)


@jit(do_not_specialize=["length", "steps", "chunks"])
def reduce_back(
    lam_re, lam_im, g_re, g_im, reset, mask, factor_re, factor_im, total_re, total_im, cleared,
    length, width: tl.int64, steps, chunks, re_row: tl.int64, re_step: tl.int64, im_row: tl.int64, im_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Summaries of all chunks but the first, from the right end of each to its left."""
    row, chunk, cols, inside = place(width, 1, chunks - 1, BLOCK)
    flag = row * length
    left = tl.minimum(steps, length - chunk * steps).to(tl.int32)
    time = chunk * steps + left - 1
    g_re += row * re_row + cols
    g_im += row * im_row + cols
    decay_re = vector(lam_re, cols, inside, STATE, BLOCK)
    decay_im = -vector(lam_im, cols, inside, STATE, BLOCK)
    product_re, product_im = tl.full((BLOCK,), 1.0, STATE), tl.full((BLOCK,), 0.0, STATE)
    re, im = tl.full((BLOCK,), 0.0, STATE), tl.full((BLOCK,), 0.0, STATE)
    begun = tl.full((), 0, tl.int32)
    now = tile(g_re, re_step, g_im, im_step, reset, mask, flag, time, left, inside, -1, COUNT)
    for _ in range(0, left, COUNT):
        later = tile(g_re, re_step, g_im, im_step, reset, mask, flag, time - COUNT, left - COUNT, inside, -1, COUNT)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            at_re, at_im = now[0][i].to(STATE) + re, now[1][i].to(STATE) + im
            after_re, after_im = times(decay_re, decay_im, at_re, at_im)
            re, im = pick(move, after_re, after_im, at_re, at_im)
            power_re, power_im = times(decay_re, decay_im, product_re, product_im)
            product_re, product_im = pick(move, power_re, power_im, product_re, product_im)
            if reset is not None:
                begins = (now[2][i] != 0) & move
                re, im = pick(begins, 0.0, 0.0, re, im)
                begun = tl.where(begins, 1, begun)
        now = later
        time -= COUNT
        left -= COUNT
    keep(
        factor_re, factor_im, total_re, total_im, cleared, row * chunks + chunk, width, cols, inside,
        product_re, product_im, re, im, begun,
    )  # fmt: skip


@jit(do_not_specialize=["length", "steps", "chunks"])
def backward(
    lam_re, lam_im, g_re, g_im, grad_final_re, grad_final_im, states_re, states_im, s_re, s_im, reset, mask,
    factor_re, factor_im, total_re, total_im, cleared,
    to_lam_re, to_lam_im, to_b_re, to_b_im, to_s_re, to_s_im,
    length, width: tl.int64, steps, chunks, re_row: tl.int64, re_step: tl.int64, im_row: tl.int64, im_step: tl.int64,
    STATE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The gradient of lambda comes out as a sum over each chunk."""
    row, chunk, cols, inside = place(width, 0, chunks, BLOCK)
    flag = row * length
    left = tl.minimum(steps, length - chunk * steps).to(tl.int32)
    edge = (chunk == 0).to(tl.int32)  # nothing is stored before the first state
    time = chunk * steps + left - 1
    g_re += row * re_row + cols
    g_im += row * im_row + cols
    states_re += (flag - 1) * width + cols
    states_im += (flag - 1) * width + cols
    to_b_re += (flag + time) * width + cols
    to_b_im += (flag + time) * width + cols
    decay_re = vector(lam_re, cols, inside, STATE, BLOCK)
    decay_im = -vector(lam_im, cols, inside, STATE, BLOCK)
    end = row * width + cols
    start_re, start_im = vector(s_re, end, inside, STATE, BLOCK), vector(s_im, end, inside, STATE, BLOCK)
    re, im = vector(grad_final_re, end, inside, STATE, BLOCK), vector(grad_final_im, end, inside, STATE, BLOCK)
    last = chunks - 1
    re, im = carried(
        re, im, factor_re, factor_im, total_re, total_im, cleared, row * chunks + last, -1, last - chunk, width, cols,
        inside, COUNT,
    )  # fmt: skip
    sum_re, sum_im = tl.full((BLOCK,), 0.0, STATE), tl.full((BLOCK,), 0.0, STATE)
    now = tile(g_re, re_step, g_im, im_step, reset, mask, flag, time, left, inside, -1, COUNT)
    before = tile(states_re, width, states_im, width, None, None, flag, time, left - edge, inside, -1, COUNT)
    for _ in range(0, left, COUNT):
        rest = left - COUNT
        later = tile(g_re, re_step, g_im, im_step, reset, mask, flag, time - COUNT, rest, inside, -1, COUNT)
        before_later = tile(
            states_re, width, states_im, width, None, None, flag, time - COUNT, rest - edge, inside, -1, COUNT
        )
        reach = tl.where(inside, left, 0)
        for i in tl.static_range(COUNT):
            move = moves(mask, now[3], left, i)
            at_re, at_im = now[0][i].to(STATE) + re, now[1][i].to(STATE) + im
            prior_re, prior_im = before[0][i].to(STATE), before[1][i].to(STATE)
            prior_re, prior_im = pick(time == i, start_re, start_im, prior_re, prior_im)
            after_re, after_im = times(decay_re, decay_im, at_re, at_im)
            counts = move
            if reset is not None:
                counts = move & (now[2][i] == 0)
                after_re, after_im = pick(now[2][i] != 0, 0.0, 0.0, after_re, after_im)
            more_re, more_im = times(at_re, at_im, prior_re, -prior_im)
            sum_re, sum_im = pick(counts, sum_re + more_re, sum_im + more_im, sum_re, sum_im)
            re, im = pick(move, after_re, after_im, at_re, at_im)
            out_re, out_im = pick(move, at_re, at_im, 0.0, 0.0)
            tl.store(to_b_re, out_re.to(to_b_re.dtype.element_ty), mask=reach > i)
            tl.store(to_b_im, out_im.to(to_b_im.dtype.element_ty), mask=reach > i)
            to_b_re -= width
            to_b_im -= width
        now, before = later, before_later
        time -= COUNT
        left = rest
    here = (row * chunks + chunk) * width + cols
    tl.store(to_lam_re + here, sum_re, mask=inside)
    tl.store(to_lam_im + here, sum_im, mask=inside)
    if chunk == 0:
        tl.store(to_s_re + end, re, mask=inside)
        tl.store(to_s_im + end, im, mask=inside)
