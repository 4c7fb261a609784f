"""How large glibc's heap grows under a sequence of allocations: the memory of a run on a CPU, which keeps what it frees.

torch asks for blocks aligned to 64 bytes. glibc finds room for the block, the alignment and a smallest chunk in one
piece, cuts the block out of it and takes the rest back. So a freed block does not fit the next one of its own size,
unless a neighbour is free too: a training step whose tensors come and go leaves holes, and the heap is much larger than
what is in use. Free neighbours are joined; a request takes the smallest piece that is large enough.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

ALIGNMENT, SMALLEST, HEADER = 64, 32, 16

Event = tuple[int, int]
"""(block, bytes): the block is allocated; (block, 0): it is freed."""


class Heap:
    """`replay` events; `top` is how far the heap reaches, in bytes: it never shrinks while memory is kept."""

    def __init__(self) -> None:
        self.top = 0
        self._end = 0  # of the last piece in use: behind it everything is free
        self._sizes: list[tuple[int, int]] = []  # (size, place) of free pieces, sorted
        self._at: dict[int, int] = {}  # place -> size of free pieces
        self._before: dict[int, int] = {}  # end -> place of free pieces
        self._used: dict[int, tuple[int, int]] = {}  # block -> place, size

    def replay(self, events: Iterable[Event]) -> None:
        """Allocates and frees in this order. A block that is not known is not freed."""
        for block, size in events:
            if size:
                self._allocate(block, size)
            elif block in self._used:
                self._release(*self._used.pop(block))

    def _allocate(self, block: int, size: int) -> None:
        needed = -(-(size + 8) // 16) * 16
        place, found = self._take(needed + ALIGNMENT + SMALLEST)
        lead = -(place + HEADER) % ALIGNMENT
        if 0 < lead < SMALLEST:
            lead += ALIGNMENT
        if lead:
            self._release(place, lead)
        rest = found - lead - needed
        if rest >= SMALLEST:
            self._release(place + lead + needed, rest)
        else:
            needed += rest
        self._used[block] = place + lead, needed

    def _take(self, size: int) -> tuple[int, int]:
        """A piece of at least this size, cut to it if what is left makes a chunk: its place and size."""
        index = bisect_left(self._sizes, (size, 0))
        if index == len(self._sizes):
            place, self._end = self._end, self._end + size
            self.top = max(self.top, self._end)
            return place, size
        found, place = self._sizes[index]
        self._forget(place, found)
        if found - size >= SMALLEST:
            self._keep(place + size, found - size)
            found = size
        return place, found

    def _release(self, place: int, size: int) -> None:
        if place in self._before:
            before = self._before[place]
            size += self._forget(before, self._at[before])
            place = before
        if place + size in self._at:
            size += self._forget(place + size, self._at[place + size])
        if place + size == self._end:
            self._end = place
        else:
            self._keep(place, size)

    def _keep(self, place: int, size: int) -> None:
        insort(self._sizes, (size, place))
        self._at[place], self._before[place + size] = size, place

    def _forget(self, place: int, size: int) -> int:
        del self._sizes[bisect_left(self._sizes, (size, place))]
        del self._at[place], self._before[place + size]
        return size
