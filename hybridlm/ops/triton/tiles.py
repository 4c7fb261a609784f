"""What every kernel shares: where a program stands, and how it reads time.

A program owns one row, one chunk of time and BLOCK channels. It walks its chunk with the state in registers, COUNT
steps to a tile. The loads of a tile do not depend on each other, and those of the next tile go out before this one is
worked on: up to 2 COUNT rows of every input are under way at once, and that, not arithmetic, decides how fast a scan
is.

A tile holds its rows as they lie in memory. They are converted when their step comes: a conversion right behind a load
would wait for it.
"""

# pyright: reportInvalidTypeForm=false
from hybridlm.ops.triton.language import jit, tl


@jit
def place(width, first, chunks, BLOCK: tl.constexpr):
    """Row and chunk (int64), channels, and which of these exist. One grid axis, since the other two end at 65535."""
    program = tl.program_id(0)
    blocks = (width.to(tl.int32) + BLOCK - 1) // BLOCK
    row = (program // blocks // chunks).to(tl.int64)
    chunk = (first + program // blocks % chunks).to(tl.int64)
    cols = program % blocks * BLOCK + tl.arange(0, BLOCK)
    return row, chunk, cols, cols < width


@jit
def rows(pointer, step, left, inside, COUNT: tl.constexpr):
    """COUNT rows from `pointer` on, `step` elements apart; zeros where fewer than COUNT are left."""
    reach = tl.where(inside, left, 0)
    out = ()
    for i in tl.static_range(COUNT):
        out += (tl.load(pointer, mask=reach > i, other=0.0),)
        pointer += step
    return out


@jit
def flags(pointer, offset, step, left, COUNT: tl.constexpr):
    """COUNT bytes, one a step; zeros where fewer are left. Nothing where there is no tensor."""
    out = ()
    if pointer is not None:
        for i in tl.static_range(COUNT):
            out += (tl.load(pointer + offset + i * step, mask=i < left, other=0),)
    return out


@jit
def tile(x, x_step, y, y_step, reset, mask, flag, time, left, inside, DIRECTION: tl.constexpr, COUNT: tl.constexpr):
    """COUNT steps of two inputs and of the flags, from `time` on. `flag` is where the row's flags begin."""
    return (
        rows(x + time * x_step, DIRECTION * x_step, left, inside, COUNT),
        rows(y + time * y_step, DIRECTION * y_step, left, inside, COUNT),
        flags(reset, flag + time, DIRECTION, left, COUNT),
        flags(mask, flag + time, DIRECTION, left, COUNT),
    )


@jit
def moves(mask, held, left, i: tl.constexpr):
    """Whether step i of a tile is one: not behind the end, not padding."""
    if mask is None:
        return i < left
    else:
        return held[i] != 0


@jit
def vector(pointer, offset, inside, STATE: tl.constexpr, BLOCK: tl.constexpr):
    """A number a channel, in the dtype of the recurrence; zeros where there is no tensor."""
    values = tl.full((BLOCK,), 0.0, STATE)
    if pointer is not None:
        values = tl.load(pointer + offset, mask=inside, other=0.0).to(STATE)
    return values


@jit
def carried(
    state, factor, total, cleared, chunk, DIRECTION: tl.constexpr, left, width, cols, inside, COUNT: tl.constexpr
):
    """`state` led through `left` chunks from number `chunk` (of all rows) on by their summaries, if there are any:
    factor * state + total, or the total alone where a document begins in the chunk (0 times a NaN is not 0)."""
    if factor is not None:
        for _ in range(0, left, COUNT):
            factors = rows(factor + chunk * width + cols, DIRECTION * width, left, inside, COUNT)
            totals = rows(total + chunk * width + cols, DIRECTION * width, left, inside, COUNT)
            clear = flags(cleared, chunk, DIRECTION, left, COUNT)
            for i in tl.static_range(COUNT):
                after = factors[i] * state + totals[i]
                if cleared is not None:
                    after = tl.where(clear[i] != 0, totals[i], after)
                state = tl.where(i < left, after, state)
            chunk += DIRECTION * COUNT
            left -= COUNT
    return state
